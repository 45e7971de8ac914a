"""Regions of an image, as a detector or a grid gives them: features and boxes."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.base import Field
from albef_jax.data.fields.sequence import SequenceField
from albef_jax.data.sources.regions import locations
from albef_jax.errors import UserError


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
        box[:count] = locations(value.boxes[:count], value.size)
        if not np.all(np.isfinite(box)):
            raise OSError("boxes that are not finite")
        return super().load_one(value.features, rng, train) | {"regions_box": box}

    def noise(self, rng, n):
        corners = np.sort(rng.random((n, self._length, 2, 2), np.float32), axis=2)
        area = np.prod(corners[:, :, 1] - corners[:, :, 0], axis=-1)
        arrays = super().noise(rng, n)
        box = np.concatenate([corners.reshape(n, self._length, 4), area[..., None]], axis=-1)
        return arrays | {"regions_box": box * arrays["regions_mask"][..., None].astype(np.float32)}


class DetectedRegionsField(RegionsField):
    """As `RegionsField`, of images that all have regions, with what a detector saw in them.

    Instead of `regions_present` there is an array `regions_class` int32 `[n]`, the object class of
    each region, -1 where it is not known and where there is no region. Boxes are clipped to the
    image, those without an area are dropped, and of too many the most confident ones are taken.

    Args:
        data: the `data` block of a config. classes: how many classes there are.
    """

    defaults = RegionsField.defaults | dict(regions_length=100)

    def __init__(self, data, classes: int):
        super().__init__(data)
        self._classes = classes

    def check_facts(self, facts, where):
        """The source must not have more classes (fact `class_names`, where it is known)."""
        super().check_facts(facts, where)
        if len(facts.get("class_names", ())) > self._classes:
            raise UserError(f"model.classes is {self._classes}, but {where} tells "
                            f"{len(facts['class_names'])} object classes apart; set model.classes "
                            "to that.")

    def spec(self):
        spec = super().spec() | {"regions_class": jax.ShapeDtypeStruct((self._length,), np.int32)}
        del spec["regions_present"]
        return spec

    def load_one(self, value, rng, train):
        if value is None:
            raise OSError("no regions")
        value = value.clipped().best(self._length)
        if not len(value.features):
            raise OSError("no region with an area inside the image")
        classes = np.full(self._length, -1, np.int32)
        if value.classes is not None:
            if not np.all((-1 <= value.classes) & (value.classes < self._classes)):
                raise OSError(f"object classes that are not below {self._classes}")
            classes[:len(value.classes)] = value.classes
        return super().load_one(value, rng, train) | {"regions_class": classes}

    def noise(self, rng, n):
        arrays = super().noise(rng, n)
        del arrays["regions_present"]
        classes = rng.integers(0, self._classes, (n, self._length), np.int32)
        return arrays | {"regions_class": np.where(arrays["regions_mask"] > 0, classes, -1)}


class GlobalFeatureField(Field):
    """Array `global_feature` float32 `[1, d]`: one feature of a whole image, such as of a CNN.

    The raw value is an array `[d]`.

    Args:
        data: the `data` block of a config.
    """

    defaults = dict(global_width=0)  # 0: no such feature
    limits = dict(global_width=(0, None))
    light = False

    def __init__(self, data):
        self._width = data.global_width

    def spec(self):
        return {"global_feature": jax.ShapeDtypeStruct((1, self._width), np.float32)}

    def load_one(self, value, rng, train):
        return {"global_feature": np.asarray(value)[None]}
