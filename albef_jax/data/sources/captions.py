"""Captions to be written: what a question-answering model learns them from."""

import bisect
from collections.abc import Iterator, Mapping
import itertools

from albef_jax.data.sources.base import Source, pairs
from albef_jax.data.text import clean

QUESTION = "what does the picture show ?"


class CaptionsSource(Source):
    """The captions of another source, each an answer to the same question.

    An example is a caption, cleaned as a pre-training reads it. The decoder of `vqa` starts as the fusion encoder of a pre-training, so
    that it writes captions after little training (`albef caption`).

    Args:
        source: the pairs of images and captions; a block or a short form.
        question: what is asked of every image.

    Raises:
        UserError: the other source cannot be used, or has no captions.
    """

    fields = pairs("question") | {"answers": {}}

    def __init__(self, source: Mapping, question: str = QUESTION):
        from albef_jax.data.sources import make_source  # it imports this file

        self._pairs, self._question = make_source(source), question
        self._cleaning = self._pairs.fields["text"].get("cleaning", "caption")
        counts = (len(self._pairs.get(i, "text")) for i in range(len(self._pairs)))
        self._ends = list(itertools.accumulate(counts))
        self.fingerprint = f"captions {question} {self._pairs.fingerprint}"

    @classmethod
    def check(cls, source, question=QUESTION):
        """The other source is one; see `Source.check`."""
        from albef_jax.data.sources import check_source

        check_source(source, "The source of captions")

    def __len__(self) -> int:
        return self._ends[-1]

    def _place(self, index: int) -> tuple[int, int]:
        """The pair that has a caption, and the number of the caption there."""
        pair = bisect.bisect_right(self._ends, index)
        return pair, index - (self._ends[pair - 1] if pair else 0)

    def name(self, index: int) -> str:
        return self._pairs.name(self._place(index)[0])

    def get(self, index: int, field: str):
        return getattr(self, field)(index) if field in ("text", "answers") else (
            self._pairs.get(self._place(index)[0], field))

    def text(self, index: int) -> list[str]:
        return [self._question]

    def answers(self, index: int) -> list[tuple[str, float]]:
        pair, number = self._place(index)
        written = self._pairs.get(pair, "text")[number]
        return [(clean(written, self._cleaning, max_words=len(written)), 1.0)]

    def words(self, step: int = 1) -> Iterator[str]:
        yield self._question
        yield from self._pairs.words(step)

    def truth(self, index: int, text: str) -> bool | None:
        return self._pairs.truth(self._place(index)[0], text)
