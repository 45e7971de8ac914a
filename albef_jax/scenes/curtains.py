"""Curtains: plain squares that hide a part of a picture."""

import numpy as np
from numpy.random import Generator

from albef_jax.scenes.graph import overlap, pick
from albef_jax.scenes.levels import Level

CELLS = 4  # curtains per side of a picture
COVERED = 0.6  # share of curtains over an object
TRIES = 60
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels


def can_hide(level: Level, feature: str) -> bool:
    """Whether objects with any value of a feature fit behind a curtain."""
    return feature != "size" or max(map(max, level.sizes.values())) <= level.side // CELLS


def place_curtain(graph, level: Level, rng: Generator) -> Box | None:
    """A curtain that covers an object wholly, or none at all; None if there is no such place."""
    side = graph["side"] // CELLS
    boxes = [item["box"] for item in graph["objects"]]
    covered = pick(rng, boxes) if rng.random() < COVERED else None
    for _ in range(TRIES):
        if level.grid:
            x, y = (side * int(CELLS * draw) for draw in rng.random(2).tolist())
            if covered:
                x, y = covered[0] // side * side, covered[1] // side * side
        elif covered:
            x, y = (int(high - side + rng.random() * (low + side - high + 1))
                    for low, high in zip(covered[:2], covered[2:]))
            x, y = min(max(x, 0), graph["side"] - side), min(max(y, 0), graph["side"] - side)
        else:
            x, y = (int((graph["side"] - side) * draw) for draw in rng.random(2).tolist())
        curtain = x, y, x + side, y + side
        under = [box for box in boxes if overlap(box, curtain)]
        inside = all(x <= box[0] and y <= box[1] and box[2] <= x + side and box[3] <= y + side
                     for box in under)
        if inside and under == ([covered] if covered else []):
            return curtain
    return None


def draw_curtain(image: np.ndarray, curtain: Box | None, level: Level) -> np.ndarray:
    """The image uint8 [side, side, 3] with its curtain, if there is one; a copy then."""
    if curtain is None:
        return image
    x0, y0, x1, y1 = curtain
    image = image.copy()
    image[y0:y1, x0:x1] = level.curtain
    return image


def split(graph: dict, curtain: Box | None) -> tuple[dict, list[dict]]:
    """The scene as far as it can be seen, and the objects behind the curtain."""
    if curtain is None:
        return graph, []
    hidden = [item for item in graph["objects"] if overlap(item["box"], curtain)]
    seen = [item for item in graph["objects"] if item not in hidden]
    return graph | {"objects": seen}, hidden
