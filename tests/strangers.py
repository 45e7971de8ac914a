"""A source and a field as somebody else would write them, against the public contract alone."""

import jax
import numpy as np

from albef_jax.data.fields import Field
from albef_jax.data.sources import Source

SHAPE = (4, 3)


class Sounds(Source):
    """Sounds with a question each, its answer, and a class.

    Args:
        size: how many. rate: of the sounds, a fact. broken: numbers of those that are damaged.
        names: of the classes.
    """

    def __init__(self, size=12, rate=8000, broken=(), names=("low", "high")):
        self._size, self._broken = size, broken
        self.fields = {"sound": {"rate": rate}, "text": {"cleaning": "question"},
                       "label": {"class_names": names}, "answers": {}}
        self.fingerprint = f"sounds {size} {rate}"

    def __len__(self):
        return self._size

    def name(self, index):
        return f"sound {index}"

    def sound(self, index):
        if index in self._broken:
            raise FileNotFoundError("nowhere")
        return np.full(SHAPE, index, np.float64)

    def text(self, index):
        return [f"What  does <person> number {index} say?"]

    def label(self, index):
        return index % 2

    def answers(self, index):
        return [("purr", 0.75), ("roar", 0.25)]


class SoundField(Field):
    """Array `sound` float32 `SHAPE`, a little louder or quieter in training."""

    def spec(self):
        return {"sound": jax.ShapeDtypeStruct(SHAPE, np.float32)}

    def load_one(self, value, rng, train):
        if value.sum() < 0:
            raise OSError("it is negative")
        return {"sound": value + (rng.uniform(0, 0.5) if train else 0)}
