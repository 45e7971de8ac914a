"""Regions of images in files: what one image has, and how it is found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
