"""Questions about images with their answers, the VQA format of the public ALBEF code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of

VISUAL_GENOME_WEIGHT = 0.5  # of its only answer; the answers of a VQA question share 1


class VqaJsonSource(ManifestSource):
    """Rows `{"question_id": ..., "image": ..., "question": ..., "dataset": ..., "answer": ...}`.

    `answer` is a text or the list of the annotators' answers, where an answer weighs as often as
    it was given; `dataset` is 'vqa' (the default) or 'vg', Visual Genome, whose one answer weighs
    0.5. Rows of a test split have no answer. `question_id` is by default the number of the row.

    Args:
        files, image_roots: see `ManifestSource`.
    """

    row_format = '{"image": ..., "question": ..., "answer": [...]}'

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = ()):
        self._questions: list[str] = []
        self._ids: list[int | str] = []
        self._given: list[list[str]] = []  # the annotators' answers, as they are
        self._weights: list[float] = []
        super().__init__(files, image_roots, "vqa")

    def add(self, row) -> None:
        name, question = fields_of(row, image=str, question=str)
        given = _answers(row)
        if self._given and bool(given) != bool(self._given[0]):
            raise ValueError(
                f'has {"an" if given else "no"} "answer", unlike the rows before it; give all '
                "rows answers, or none of them"
            )
        self.names.append(name)
        self._questions.append(question)
        self._ids.append(row.get("question_id", len(self._ids)))
        self._given.append(given)
        self._weights.append(VISUAL_GENOME_WEIGHT if row.get("dataset") == "vg" else 1.0)

    def finish(self) -> None:
        answered = {"answers": {}, "annotators": {}} if any(self._given) else {}
        self.fields = pairs("question") | {"question_id": {}} | answered

    def text(self, index: int) -> list[str]:
        return [self._questions[index]]

    def question_id(self, index: int) -> int | str:
        return self._ids[index]

    def answers(self, index: int) -> list[tuple[str, float]]:
        given = self.annotators(index)
        share = self._weights[index] / max(len(given), 1)
        return [(answer, count * share) for answer, count in Counter(given).items()]

    def annotators(self, index: int) -> list[str]:
        return self._given[index]


def _answers(row: dict) -> list[str]:
    """The answers of a row, [] if it has none.

    Raises:
        ValueError: they, or the data set that says how much they weigh, cannot be understood.
    """
    dataset = row.get("dataset", "vqa")
    if dataset not in ("vqa", "vg"):
        raise ValueError(f"is of the dataset {dataset!r}; use 'vqa' or 'vg'")
    if "answer" not in row:
        return []
    given = row["answer"]
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError(f'has the "answer" {str(given)[:100]}; give a text or a list of texts')
    if not any(text.strip() for text in given):
        raise ValueError("has an empty answer list; give it an answer or remove the row")
    if dataset == "vg" and len(given) > 1:
        raise ValueError(f"is of the dataset 'vg' and has {len(given)} answers; give it one")
    return given
