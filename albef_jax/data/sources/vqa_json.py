"""Questions about images with their answers, the VQA format of the public ALBEF code."""

from collections import Counter
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of

VISUAL_GENOME_WEIGHT = 0.5  # of its only answer; the answers of a VQA question share 1


class VqaJsonSource(ManifestSource):
    """Rows `{"question_id": ..., "image": ..., "question": ..., "dataset": ..., "answer": ...}`.

    `answer` is a text or the list of the annotators' answers, where an answer weighs as often as
    it was given; `dataset` is 'vqa' (the default) or 'vg', Visual Genome, whose one answer weighs
    0.5. Rows of a test split have no answer. `question_id` is by default the number of the row. The
    options are those of `ManifestSource`.
    """

    row_format = '{"image": ..., "question": ..., "answer": [...]}'

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = ()):
        super().__init__(files, image_roots, "vqa")

    def add(self, row) -> None:
        name, question = fields_of(row, image=str, question=str)
        given = _answers(row)
        if self.names and bool(given) != bool(self.columns["annotators"][0]):
            raise ValueError(f'has {"an" if given else "no"} "answer", unlike the rows before it; '
                             "give all rows answers, or none of them")
        self.append(name, text=[question], question_id=row.get("question_id", len(self.names)),
                    annotators=given,
                    weight=VISUAL_GENOME_WEIGHT if row.get("dataset") == "vg" else 1.0)

    def finish(self) -> None:
        answered = {"answers": {}, "annotators": {}} if any(self.columns["annotators"]) else {}
        self.fields = pairs("question") | {"question_id": {}} | answered

    def answers(self, index: int) -> list[tuple[str, float]]:
        given = self.columns["annotators"][index]
        share = self.columns["weight"][index] / max(len(given), 1)
        return [(answer, count * share) for answer, count in Counter(given).items()]


def _answers(row: dict) -> list[str]:
    """The answers of a row, [] if it has none; raises ValueError."""
    dataset = row.get("dataset", "vqa")
    if dataset not in ("vqa", "vg"):
        raise ValueError(f"is of the dataset {dataset!r}; use 'vqa' or 'vg'")
    if "answer" not in row and "answers" in row:
        raise ValueError('has "answers"; rename it "answer"')
    if "answer" not in row:
        return []
    given = row["answer"]
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError(f'has the "answer" {str(given)[:100]}; give a text or a list of texts')
    given = [text for text in given if text.strip()]
    if not given:
        raise ValueError("has no answer but blank ones; give it an answer or remove the row")
    if dataset == "vg" and len(given) > 1:
        raise ValueError(f"is of the dataset 'vg' and has {len(given)} answers; give it one")
    return given
