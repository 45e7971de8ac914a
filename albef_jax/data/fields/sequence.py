"""Features of clips, of bands of sound, of regions: rows of numbers that an example may lack."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.base import Field
from albef_jax.errors import UserError


AXES = ("mel", "time")


class SequenceField(Field):
    """Arrays `NAME` float32 `[n, d]`, `NAME_mask` int32 `[n]` and `NAME_present` bool `[]`.

    The raw value is an array `[m, d]`: the first n rows are taken, zeros fill up, and the mask is 1
    for rows that are there. None is a missing value, imputed as in the public SCALE code: not
    present, n rows of zeros, and a mask of 1 on all of them.

    Args:
        data: the `data` block of a config, with `NAME_length` n and `NAME_width` d.
    """

    name = ""
    light = False

    def __init__(self, data):
        self._length, self._width = data[f"{self.name}_length"], data[f"{self.name}_width"]

    def check_facts(self, facts, where):
        """The features of the source must be as wide (fact `width`, where it is known)."""
        width = facts.get("width", self._width)
        if width != self._width:
            raise UserError(f"data.{self.name}_width is {self._width}, but features {self.name!r} "
                            f"of {where} are {width} wide; set data.{self.name}_width={width}, or "
                            "give other features.")

    def spec(self):
        return {self.name: jax.ShapeDtypeStruct((self._length, self._width), np.float32),
                f"{self.name}_mask": jax.ShapeDtypeStruct((self._length,), np.int32),
                f"{self.name}_present": jax.ShapeDtypeStruct((), np.bool_)}

    def load_one(self, value, rng, train):
        rows = np.zeros((self._length, self._width), np.float32)
        mask = np.ones(self._length, np.int32)
        if value is not None:
            value = np.asarray(value)
            if value.ndim != 2 or value.shape[1] != self._width:
                raise OSError(f"features of shape {list(value.shape)}, not [n, {self._width}]")
            value = value[:self._length].astype(np.float32)
            if not np.all(np.isfinite(value)):
                raise OSError("features that are not finite")
            rows[:len(value)] = value
            mask[len(value):] = 0
        return {self.name: rows, f"{self.name}_mask": mask,
                f"{self.name}_present": value is not None}

    def noise(self, rng, n):
        arrays = super().noise(rng, n)
        lengths = rng.integers(1, self._length + 1, (n, 1))
        mask = (np.arange(self._length) < lengths).astype(np.int32)
        return arrays | {self.name: arrays[self.name] * mask[..., None].astype(np.float32),
                         f"{self.name}_mask": mask, f"{self.name}_present": np.ones(n, bool)}


class VideoField(SequenceField):
    """Clips; the default width is that of S3D features as M5Product has them."""

    name = "video"
    defaults = dict(video_length=12, video_width=1024)
    limits = dict(video_length=(1, None), video_width=(1, None))


class AudioField(SequenceField):
    """Rows of a mel spectrogram `[bands, frames]`, see `data.media.sound_features`.

    A row is a band over time, as the public SCALE code has it; with `audio_axis='time'` the mean of
    `audio_pool` frames over all bands, for which length and width must be set, too (47 and 80).
    """

    name = "audio"
    defaults = dict(audio_length=80, audio_width=751, audio_axis="mel", audio_pool=16)
    limits = dict(audio_length=(1, None), audio_width=(1, None), audio_pool=(1, None))

    def __init__(self, data):
        super().__init__(data)
        self._axis, self._pool = data.audio_axis, data.audio_pool

    def check(self):
        """See `Field.check`."""
        if self._axis not in AXES:
            raise UserError(f"data.audio_axis is {self._axis!r}; choose one of {AXES}.")

    def check_facts(self, facts, where):
        """See `SequenceField`; how many bands there are is not among the facts."""
        if self._axis == "mel":
            super().check_facts(facts, where)

    def load_one(self, value, rng, train):
        if value is not None and self._axis == "time":
            frames = np.asarray(value, np.float32).T
            value = np.stack([frames[start:start + self._pool].mean(axis=0)
                              for start in range(0, len(frames), self._pool)])
        return super().load_one(value, rng, train)
