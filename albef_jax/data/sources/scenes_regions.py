"""The embedded scenes with what a detector found in them."""

import functools

import numpy as np

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.regions import Regions
from albef_jax.data.sources.scenes_source import ScenesSource
from albef_jax.scenes.detector import WIDTH, detect
from albef_jax.scenes.graph import scene_rng

STREAM = 20  # of random numbers


class ScenesRegionsSource(ScenesSource):
    """Scenes and captions as of `ScenesSource`, and regions, see `scenes.detector`.

    Classes of objects are their shapes.

    Args:
        level, split, size, seed, swapped, damaged, data_dir: see `ScenesSource`.
        regions: of a scene. missed, confused: shares of errors of the detector.
    """

    limits = ScenesSource.limits | dict(regions=(1, None), missed=(0.0, 1.0), confused=(0.0, 1.0))

    def __init__(self, level: str = "demo", split: str = "train", size: int = 20000, seed: int = 0,
                 swapped: float = 0.0, damaged: float = 0.0, regions: int = 10,
                 missed: float = 0.05, confused: float = 0.1, data_dir: str = ""):
        super().__init__(level, split, size, seed, swapped, damaged, data_dir)
        self._detector = dict(count=regions, missed=missed, confused=confused)
        self.regions = functools.lru_cache(None)(self._regions)
        self.fingerprint += f" regions={regions} missed={missed} confused={confused}"

    @functools.cached_property
    def fields(self):
        """See `Source`."""
        return pairs() | {"regions": {"width": WIDTH, "class_names": self._level.shapes}}

    @classmethod
    def check(cls, regions=10, missed=0.05, confused=0.1, **others):
        """See `Source.check`."""
        super().check(**others)

    def _regions(self, index: int) -> Regions:
        rng = scene_rng(self._seed, self._split, index, STREAM)
        found = detect(self.graph(index), self._level, rng, **self._detector)
        return Regions(np.stack([one.feature for one in found]),
                       np.array([one.box for one in found], np.float32),
                       (self._level.side, self._level.side),
                       np.array([one.shape for one in found], np.int32),
                       np.array([one.confidence for one in found], np.float32))
