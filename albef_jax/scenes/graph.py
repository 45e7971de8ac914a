"""Sampling of scene graphs: plain JSON data, from which images and captions follow.

    {"side": 64,
     "background": {"kind": "shaded", "colours": [[r, g, b], [r, g, b]], "seed": 7},
     "objects": [{"colour": "red", "shape": "star", "size": "large", "texture": "plain",
                  "place": "top left", "diameter": 24, "centre": [x, y],
                  "box": [x0, y0, x1, y1]}, ...]}

Pixels are counted from the upper left corner; a box is x0 <= x < x1, y0 <= y < y1.
"""

import math

import numpy as np
from numpy.random import Generator

from albef_jax.scenes.levels import BACKGROUNDS, Level
from albef_jax.scenes.shapes import EXTENTS

SPLITS = ("train", "heldout")
GAP = 1  # pixels between the boxes of two objects
TRIES = 20  # places that are tried for an object before everything is placed anew
TWINS = 0.15  # share of scenes whose first two objects have the same colour and shape
JITTER = 2  # pixels around the middle of a cell
MARGIN = 0.12  # of the side: how far from the middle an object has a named place


def scene_rng(seed: int, split: str, index: int, *stream: int) -> Generator:
    """The generator of one part of one scene."""
    return Generator(np.random.Philox([seed, SPLITS.index(split), index, *stream]))


def sample_graph(level: Level, split: str, index: int, seed: int = 0) -> dict:
    """The scene of an index; scenes of the held-out split hold a kind never seen in training."""
    rng = scene_rng(seed, split, index, 0)
    return {"side": level.side, "background": _background(level, rng),
            "objects": _objects(level, split, rng)}


def pick(rng: Generator, options):
    """One of the options, uniformly (several times faster than `Generator.choice`)."""
    return options[int(rng.random() * len(options))]


def _background(level, rng):
    """Greyish colours of one brightness: no object has such a colour."""
    base = rng.uniform(*level.brightness) + rng.uniform(-13, 13, 3)
    step = pick(rng, (-1, 1)) * rng.uniform(0.1, 0.2) * base.mean()
    colours = np.clip([base, base + step + rng.uniform(-6, 6, 3)], 8, 178)
    return {"kind": pick(rng, BACKGROUNDS), "colours": colours.astype(int).tolist(),
            "seed": int(rng.integers(2**31))}


def _objects(level, split, rng):
    least, most = level.objects
    number = least + int(rng.random() * (most - least + 1))
    common = level.train_kinds if split == "train" else level.kinds
    first = level.train_kinds if split == "train" else level.held_out_kinds
    kinds = [pick(rng, first)] + [pick(rng, common) for _ in range(number - 1)]
    if rng.random() < TWINS:
        kinds[1] = pick(rng, [kind for kind in common if kind[:2] == kinds[0][:2]])
    while True:
        objects = []
        for colour, shape, texture in kinds:
            size = pick(rng, tuple(level.sizes))
            looks = {"colour": colour, "shape": shape, "size": size, "texture": texture}
            placed = _place(level, looks, objects, rng)
            if placed is None:
                break
            objects.append(placed)
        else:
            return objects


def _place(level, looks, others, rng):
    """The object somewhere where it touches no other, or None if no room was found."""
    least, most = level.sizes[looks["size"]]
    diameter = least + int(rng.random() * (most - least + 1))
    half_x, half_y = (diameter / 2 * extent for extent in EXTENTS[looks["shape"]])
    for x, y in rng.random((TRIES, 2)).tolist():
        x, y = (_coordinate(level, draw, half) for draw, half in ((x, half_x), (y, half_y)))
        box = [math.floor(x - half_x), math.floor(y - half_y),
               math.ceil(x + half_x), math.ceil(y + half_y)]
        if not any(overlap(box, other["box"], GAP) for other in others):
            place = place_name(x / level.side, y / level.side)
            return looks | {"place": place, "diameter": diameter, "centre": [x, y], "box": box}
    return None


def _coordinate(level, draw, half):
    """Where a uniform draw puts the middle of something of this half width, in pixels."""
    if level.grid:
        cell, place = divmod(draw * level.grid, 1)
        side = level.side / level.grid
        return round((cell + 0.5) * side + (2 * place - 1) * min(JITTER, side / 2 - half - 1), 2)
    return round(half + 1 + draw * (level.side - 2 * half - 2), 2)


def overlap(a, b, gap: int = 0) -> bool:
    """Whether two boxes overlap, or are less than `gap` pixels apart."""
    return (a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap)


def place_name(x: float, y: float) -> str:
    """"top left", ..., or "" of a point in units of the side; "" near the middle lines."""
    if min(abs(x - 0.5), abs(y - 0.5)) < MARGIN:
        return ""
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def relations_of(a: dict, b: dict, side: int, names, margin: float = MARGIN) -> list[str]:
    """Those of the relations `names` in which object a clearly stands to object b.

    Directions by `margin` of the side.
    """
    dx, dy = ((q - p) / side for p, q in zip(a["centre"], b["centre"]))
    distance = math.hypot(dx, dy)
    tests = {
        "left of": dx >= margin, "right of": dx <= -margin,
        "above": dy >= margin, "below": dy <= -margin,
        "near": distance <= 0.35, "far from": distance >= 0.6}
    return [name for name in names if tests[name]]
