"""Regions of an image, as a detector or a grid gives them: features and boxes."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.sequence import SequenceField


class RegionsField(SequenceField):
    """As `SequenceField`, and an array `regions_box` float32 `[n, 5]`.

    A box is x1 / w, y1 / h, x2 / w, y2 / h and its share of the image of w x h pixels; zeros where
    there is none. The raw value is a `data.sources.regions.Regions`, or None.

    Args:
        data: the `data` block of a config.
    """

    name = "regions"
    defaults = dict(regions_length=36, regions_width=2048)
    limits = dict(regions_length=(1, None), regions_width=(1, None))

    def spec(self):
        return super().spec() | {
            "regions_box": jax.ShapeDtypeStruct((self._length, 5), np.float32)}

    def load_one(self, value, rng, train):
        box = np.zeros((self._length, 5), np.float32)
        if value is None:
            return super().load_one(None, rng, train) | {"regions_box": box}
        count = min(len(value.features), self._length)
        width, height = value.size
        if value.boxes.shape != (len(value.features), 4) or min(width, height) <= 0:
            raise OSError(f"boxes of shape {list(value.boxes.shape)} in an image of {width} x "
                          f"{height} for {len(value.features)} regions")
        x1, y1, x2, y2 = value.boxes[:count].astype(np.float32).T
        box[:count] = np.stack([x1 / width, y1 / height, x2 / width, y2 / height,
                                (x2 - x1) * (y2 - y1) / (width * height)], axis=1)
        if not np.all(np.isfinite(box)):
            raise OSError("boxes that are not finite")
        return super().load_one(value.features, rng, train) | {"regions_box": box}

    def noise(self, rng, n):
        corners = np.sort(rng.random((n, self._length, 2, 2), np.float32), axis=2)
        area = np.prod(corners[:, :, 1] - corners[:, :, 0], axis=-1)
        arrays = super().noise(rng, n)
        box = np.concatenate([corners.reshape(n, self._length, 4), area[..., None]], axis=-1)
        return arrays | {"regions_box": box * arrays["regions_mask"][..., None].astype(np.float32)}
