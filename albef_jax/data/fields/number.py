"""Whole numbers that tell examples apart or together, such as which image an example shows."""

import jax
import numpy as np

from albef_jax.data.fields.base import Field


class NumberField(Field):
    """Array `NAME`, an int32 scalar."""

    def __init__(self, name: str):
        self.name = name

    def spec(self):
        return {self.name: jax.ShapeDtypeStruct((), np.int32)}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`; nothing is drawn, and threads would take longer to ask."""
        return super().load(values, [None] * len(values), train)

    def load_one(self, value, rng, train):
        return {self.name: value}

    def noise(self, rng, n):
        """All different."""
        return {self.name: np.arange(n, dtype=np.int32)}
