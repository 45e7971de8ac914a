"""Regions of an image: what one image has, under whatever names a file has it, and geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# A value -> what files call it: ours, those of detectors, and those of UNITER's files.
NAMES = {"features": ("features", "feats"), "classes": ("classes", "cls_id", "objects_id"),
         "confidences": ("confidences", "cls_conf", "objects_conf", "conf"),
         "probabilities": ("cls_prob", "soft_labels")}
SIZES = (("width", "height"), ("image_w", "image_h"), ("img_w", "img_h"))
SHARES = ("norm_bb", "spatial_features")  # x1, y1, x2, y2, ... as shares of width and height


class Regions(NamedTuple):
    """What a detector, or a grid, found in an image.

    features: float [n, d]. boxes: float [n, 4], x1, y1, x2, y2 in pixels. size: width and height of
    the image. classes: int [n], the likeliest object class of each, without background; None where
    it is not known. confidences: float [n], how sure the detector is of them; None likewise.
    """

    features: np.ndarray
    boxes: np.ndarray
    size: tuple[float, float]
    classes: np.ndarray | None = None
    confidences: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> Regions:
        """Some of the regions, by their numbers."""
        taken = {name: getattr(self, name)[chosen] for name in self._fields
                 if name != "size" and getattr(self, name) is not None}
        return self._replace(**taken)

    def clipped(self) -> Regions:
        """The boxes cut off at the borders of the image; without those that have no area left."""
        boxes, valid = clipped(self.boxes, self.size)
        return self._replace(boxes=boxes).rows(np.flatnonzero(valid))

    def best(self, count: int) -> Regions:
        """The `count` most confident regions in their order, or the first ones."""
        if self.confidences is None or len(self.features) <= count:
            return self.rows(np.arange(min(count, len(self.features))))
        order = np.argsort(-self.confidences, kind="stable")
        return self.rows(np.sort(order[:count]))


def clipped(boxes: np.ndarray, size) -> tuple[np.ndarray, np.ndarray]:
    """Boxes inside the image, float32, and whether they have an area there, bool.

    Args:
        boxes: [..., 4], x1, y1, x2, y2 in pixels. size: width and height, 2 or [..., 2].
    """
    borders = np.concatenate([np.asarray(size, np.float32)] * 2, axis=-1)
    inside = np.clip(np.asarray(boxes, np.float32), 0, borders)
    return inside, np.all(inside[..., 2:] > inside[..., :2], axis=-1)


def locations(boxes: np.ndarray, size) -> np.ndarray:
    """x1 / w, y1 / h, x2 / w, y2 / h, and the share of the image's area: float32 [..., 5].

    Args:
        boxes: [..., 4], x1, y1, x2, y2 in pixels. size: width and height, 2 or [..., 2].
    """
    width, height = np.moveaxis(np.asarray(size, np.float32), -1, 0)
    x1, y1, x2, y2 = np.moveaxis(np.asarray(boxes, np.float32), -1, 0)
    return np.stack([x1 / width, y1 / height, x2 / width, y2 / height,
                     (x2 - x1) * (y2 - y1) / (width * height)], axis=-1)


def likeliest(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object classes int32 [n] and their probabilities float32 [n].

    Args:
        probabilities: [n, 1 + k], of background in column 0, which is never a region's class.
    """
    objects = np.asarray(probabilities, np.float32)[:, 1:]
    return np.argmax(objects, axis=1).astype(np.int32), np.max(objects, axis=1)


def of_arrays(arrays: Mapping) -> Regions:
    """The regions whose arrays have any of the names in `NAMES`, `SIZES` and `SHARES`, checked.

    Without a size of the image, boxes are shares of an image of 1 x 1. Of class probabilities the
    likeliest class is taken.

    Raises:
        OSError: something is missing, does not fit the rest, or is not finite.
    """
    found = {key: next((np.asarray(arrays[name]) for name in names if name in arrays), None)
             for key, names in NAMES.items()}
    features, classes, confidences, probabilities = found.values()
    boxes, size = _boxes(arrays)
    if features is None or boxes is None:
        raise OSError(f"no {'features' if features is None else 'boxes with the image size'} of "
                      "regions")
    if probabilities is not None and probabilities.ndim == 2 and len(probabilities):
        likely = likeliest(probabilities)
        classes = likely[0] if classes is None else classes
        confidences = likely[1] if confidences is None else confidences
    return checked(Regions(features, boxes, size, classes, confidences))


def _boxes(arrays: Mapping) -> tuple[np.ndarray | None, tuple]:
    for width, height in SIZES:
        if "boxes" in arrays and width in arrays and height in arrays:
            return np.asarray(arrays["boxes"]), (float(arrays[width]), float(arrays[height]))
    if "boxes" in arrays and "size" in arrays:
        return np.asarray(arrays["boxes"]), tuple(np.asarray(arrays["size"], float).tolist())
    shares = next((np.asarray(arrays[name]) for name in SHARES if name in arrays), None)
    return (None if shares is None else shares[..., :4].astype(np.float32)), (1.0, 1.0)


def checked(regions: Regions) -> Regions:
    """The same; raises OSError where shapes do not fit each other or numbers are not finite."""
    count = len(regions.features) if regions.features.ndim == 2 else 0
    if not count:
        raise OSError(f"features of shape {list(regions.features.shape)}, not [n, width]")
    shapes = {"boxes": (count, 4), "classes": (count,), "confidences": (count,)}
    for name, shape in shapes.items():
        array = getattr(regions, name)
        if array is not None and array.shape != shape:
            raise OSError(f"{name} of shape {list(array.shape)} for {count} regions")
    if len(regions.size) != 2 or not all(0 < side < np.inf for side in regions.size):
        raise OSError(f"an image of {' x '.join(map('{:g}'.format, regions.size))}")
    for name in ("features", "boxes", "confidences"):
        array = getattr(regions, name)
        if array is not None and not (array.dtype.kind in "fiu" and np.all(np.isfinite(array))):
            raise OSError(f"{name} that are not finite numbers")
    if regions.classes is not None and regions.classes.dtype.kind not in "iu":
        raise OSError(f"classes {regions.classes.dtype}, not whole numbers")
    return regions
