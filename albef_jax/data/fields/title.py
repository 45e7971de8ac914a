"""Titles: texts that an example may lack."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.base import read_all
from albef_jax.data.fields.text import TextField


class TitleField(TextField):
    """As `TextField`, and an array `NAME_present` bool `[]`.

    An empty list of texts, or one of empty texts, is a missing title: without tokens, not present.
    Arrays are never cut: tokens of other modalities stand behind those of the title.

    Args:
        data, words, name: see `TextField`.
    """

    def __init__(self, data, words, name: str = "title"):
        super().__init__(data, words, name)
        self._present = f"{name}_present"

    def spec(self):
        return super().spec() | {self._present: jax.ShapeDtypeStruct((), np.bool_)}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`."""
        titles, problems = read_all(values, [])
        written = [[text for text in title if text.strip()] for title in titles]
        arrays, _ = super().load([lambda some=some: some or [""] for some in written], rngs, train)
        return arrays | {self._present: np.array([bool(some) for some in written])}, problems

    def noise(self, rng, n):
        return super().noise(rng, n) | {self._present: np.ones(n, bool)}

    def trimmed(self, arrays):
        return arrays
