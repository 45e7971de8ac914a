"""What an object detector would find in a scene: boxes with a class and how sure it is of it.

As a real one it shakes boxes, sees an object more than once or not at all, takes one shape for
another, and finds things where there is nothing, of which it is less sure. Its features tell what
is in a box, as those of detectors do that were trained on objects and their attributes: each
attribute has a code, and there is noise.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from albef_jax.scenes.graph import pick
from albef_jax.scenes.levels import Level, get_level
from albef_jax.scenes.proposals import loose_box, shaken

WIDTH = 64  # of features
NOISE = 0.1  # in each of their numbers; a code has the length 1
AGAIN = 0.5  # share of objects that are found a second time; of these, a third time
SURE, DOUBTFUL, UNSURE = (0.6, 0.99), (0.3, 0.7), (0.05, 0.4)  # ranges of confidences


class Detection(NamedTuple):
    """One region."""

    box: list[float]  # x0, y0, x1, y1 in pixels
    shape: int  # its class: a number of `Level.shapes`
    confidence: float
    feature: np.ndarray  # float32 [WIDTH]


def detect(graph: dict, level: Level, rng: Generator, count: int, missed: float = 0.05,
           confused: float = 0.1) -> list[Detection]:
    """The `count` detections of a scene that are surest, the surest first.

    Args:
        graph: see `scenes.graph`. missed: share of the objects that are not found.
        confused: share of detections of objects that have another class.
    """
    found, objects = [], graph["objects"]
    for item in objects:
        share = 1 - missed
        while rng.random() < share:
            found.append(_seen(item, graph["side"], level, rng, confused))
            share = AGAIN
    while len(found) < count:
        box = loose_box(pick(rng, objects)["box"], graph["side"], rng)
        feature = sum(_part_inside(item["box"], box) * code_of(item, level) for item in objects)
        found.append(Detection(box, int(rng.random() * len(level.shapes)), rng.uniform(*UNSURE),
                               _noisy(feature, rng)))
    return sorted(found, key=lambda one: -one.confidence)[:count]


def _seen(item: dict, side: int, level: Level, rng: Generator, confused: float) -> Detection:
    """A detection of an object."""
    shape, sure = level.shapes.index(item["shape"]), SURE
    if rng.random() < confused:
        shape = (shape + 1 + int(rng.random() * (len(level.shapes) - 1))) % len(level.shapes)
        sure = DOUBTFUL
    feature = code_of({**item, "shape": level.shapes[shape]}, level)
    return Detection(shaken(item["box"], side, rng), shape, rng.uniform(*sure),
                     _noisy(feature, rng))


def code_of(item: dict, level: Level) -> np.ndarray:
    """The codes of what an object looks like, summed: float [WIDTH]."""
    return sum(_codes(level.name)[kind, item[kind]] for kind in level.values)


@functools.lru_cache(None)
def _codes(level: str) -> dict[tuple[str, str], np.ndarray]:
    """The code of each value of each attribute: random, of length 1, always the same."""
    values = [(kind, value) for kind, some in get_level(level).values.items() for value in some]
    codes = np.random.Generator(np.random.Philox(7)).normal(size=(len(values), WIDTH))
    return dict(zip(values, codes / np.linalg.norm(codes, axis=1, keepdims=True)))


def _noisy(feature, rng: Generator) -> np.ndarray:
    return (feature + NOISE * rng.normal(size=WIDTH)).astype(np.float32)


def _part_inside(box, other) -> float:
    """The share of a box x0, y0, x1, y1 that is inside another one."""
    sides = (max(min(box[i + 2], other[i + 2]) - max(box[i], other[i]), 0) for i in (0, 1))
    return np.prod([*sides]) / ((box[2] - box[0]) * (box[3] - box[1]))
