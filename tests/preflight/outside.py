"""A task, its field and its source as somebody else writes them: no image, no text, no teacher."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.data.fields import Field
from albef_jax.data.sources import Source
from albef_jax.tasks.base import Aux, Task

SHAPE = 6, 4  # moments, numbers


class Moments(Field):
    """Array `name` float32 `SHAPE`."""

    def __init__(self, name):
        self._name = name

    def spec(self):
        return {self._name: jax.ShapeDtypeStruct(SHAPE, np.float32)}

    def load_one(self, value, rng, train):
        return {self._name: value}


class TwoTowers(nn.Module):
    """Sums of moments as vectors `[b, width]`."""

    width: int

    @nn.compact
    def __call__(self, sound, motion):
        return [nn.Dense(self.width)(x.sum(axis=-2)) for x in (sound, motion)]


class Contrast(Task):
    """Which motion of a group belongs to a sound."""

    def __init__(self, config):
        self.model = TwoTowers(config.model.width)

    @classmethod
    def defaults(cls):
        return dict(model=dict(width=8))

    @classmethod
    def fields(cls, config):
        return {"sound": Moments("sound"), "motion": Moments("motion")}

    def init_boxed(self, rng):
        return self.model.init(rng, *[jnp.zeros((1, *SHAPE))] * 2)["params"]

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        sound, motion = self.model.apply({"params": params}, group["sound"], group["motion"])
        loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(sound @ motion.T)))
        return loss, Aux({"loss": loss}, {}, {})


class Recordings(Source):
    """Noise; of some examples the sound is gone."""

    fingerprint = "recordings"
    fields = {"sound": {}, "motion": {}, "place": {"class_names": ("street", "wood")},
              "heard": {}}

    def __init__(self, size=40, gone=()):
        self._size, self._gone = size, gone

    def __len__(self):
        return self._size

    def name(self, index):
        return f"recording {index}"

    def sound(self, index):
        if index in self._gone:
            raise FileNotFoundError(f"{index}.wav")
        return np.random.default_rng(index).normal(size=SHAPE).astype(np.float32)

    def motion(self, index):
        return self.sound(index - index % 2)

    def place(self, index):
        return np.int64(index % 4 == 0)

    def heard(self, index):
        return ["bird", "car"][:index % 3]
