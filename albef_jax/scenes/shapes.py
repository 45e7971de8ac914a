"""Signed distances of shapes: negative inside, in units of half the diameter, y downwards.

Every shape is centred in its bounding box, whose half sides are in `EXTENTS`.
"""

import numpy as np


def _box(x, y, half_x, half_y):
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _heart(x, y):
    """A square on its corner with a half disc on each upper side."""
    d = 0.828
    x, y = np.abs(x), y - 0.1035 * d  # the box of the three parts is not centred on the square
    lobe = np.hypot(x - d / 2, y + d / 2) - d / np.sqrt(2)
    return np.minimum(lobe, (x + np.abs(y) - d) / np.sqrt(2))


def _moon(x, y):
    """A disc without a smaller one on its right; the box is that of the disc cut at the horns."""
    x = x - 0.245
    return np.maximum(np.hypot(x, y) - 1, 0.86 - np.hypot(x - 0.52, y))


def _drop(x, y):
    """A disc with a point on top."""
    y = y - 0.35
    # Tangents from the point, 1.35 above the centre of a disc of radius 0.65.
    flank = np.maximum(np.abs(x) * 0.8765 - (y + 1.35) * 0.4815, y + 0.313)
    return np.minimum(np.hypot(x, y) - 0.65, flank)


def _polygon(points):
    """Exact signed distance of a simple polygon with corners `points` [n, 2]."""
    start = np.asarray(points, np.float32)[:, :, None, None]
    edge = np.roll(start, -1, axis=0) - start
    length = (edge**2).sum(1)

    def distance(x, y):
        px, py = x - start[:, 0], y - start[:, 1]
        along = np.clip((px * edge[:, 0] + py * edge[:, 1]) / length, 0, 1)
        gap = (px - along * edge[:, 0]) ** 2 + (py - along * edge[:, 1]) ** 2
        # Inside, a ray to the right crosses an odd number of edges. Each corner is looked at once:
        # two edges must not disagree about the corner that they share.
        above = y < start[:, 1]
        spans = above != np.roll(above, -1, axis=0)
        crosses = spans & ((px * edge[:, 1] < py * edge[:, 0]) == (edge[:, 1] > 0))
        inside = np.logical_xor.reduce(crosses)
        return np.sqrt(gap.min(0)) * np.where(inside, -1, 1)

    return distance


def _regular(n, inner=None):
    """Corners of an n-pointed star, or of a regular n-gon and its edges' middles."""
    corner = np.arange(2 * n)
    angles = corner * (np.pi / n)
    radii = np.where(corner % 2, inner or np.cos(np.pi / n), 1)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)


def _centred(points):
    """Moved so that the bounding box is centred, scaled into the unit square."""
    points = points - (points.min(0) + points.max(0)) / 2
    return points / np.abs(points).max()


_POLYGONS = {
    "triangle": _centred(_regular(3)), "star": _centred(_regular(5, 0.42)),
    "hexagon": _centred(_regular(6)[:, ::-1]),
    "arrow": np.array([(1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3), (-1, -0.3), (0.1, -0.3),
                       (0.1, -0.8)]),
}
DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: _box(x, y, 0.88, 0.88),
    "cross": lambda x, y: np.minimum(_box(x, y, 1, 0.32), _box(x, y, 0.32, 1)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.71) - 0.29,
    "diamond": lambda x, y: (np.abs(x) / 0.75 + np.abs(y) - 1) * 0.6,
    "heart": _heart, "moon": _moon, "drop": _drop,
    **{name: _polygon(corners) for name, corners in _POLYGONS.items()},
}
EXTENTS = {
    "circle": (1, 1), "square": (0.88, 0.88), "cross": (1, 1), "ring": (1, 1),
    "diamond": (0.75, 1), "heart": (1, 0.914), "moon": (0.76, 1), "drop": (0.65, 1),
    **{name: tuple(np.abs(corners).max(0).tolist()) for name, corners in _POLYGONS.items()},
}
