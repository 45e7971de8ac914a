"""Pixels of a scene graph: anti-aliased shapes with textures on a quiet background."""

import math

import numpy as np

from albef_jax.scenes.levels import COLOURS
from albef_jax.scenes.shapes import DISTANCES

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
DARK = 85  # brightness below which a texture is lighter than its object, not darker
RIM = 0.7  # pixels inside the outline where a texture begins to show
PERIOD = 6.0  # of textures in pixels


def render(graph: dict) -> np.ndarray:
    """The image uint8 [side, side, 3] of a graph."""
    pixels = background(graph["background"], graph["side"])
    for item in graph["objects"]:
        paint(pixels, item)
    return (pixels + 0.5).astype(np.uint8)


def background(spec: dict, side: int) -> np.ndarray:
    """The background float32 [side, side, 3], in 0..255."""
    rng = np.random.Generator(np.random.Philox(spec["seed"]))
    first, second = np.array(spec["colours"], np.float32)
    share = _SHARES[spec["kind"]](side, rng)
    return first + share[..., None] * (second - first)


def _shaded(side, rng):
    x, y = _axes(side)
    angle = rng.uniform(0, 2 * np.pi)
    return np.clip(1.5 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) + 0.5, 0, 1)


def _checkered(side, rng):
    x, y = _axes(side)
    fields = rng.integers(4, 7)
    return ((x * fields).astype(np.int8) + (y * fields).astype(np.int8)) % 2 * np.float32(0.7)


_SHARES = {  # of the second colour
    "plain": lambda side, rng: np.zeros((side, side), np.float32),
    "speckled": lambda side, rng: rng.random((side, side), np.float32),
    "shaded": _shaded, "checkered": _checkered,
}


def _axes(side):
    """x [1, side] and y [side, 1] of the pixels' centres, in 0..1."""
    points = (np.arange(side, dtype=np.float32) + 0.5) / side
    return points[None], points[:, None]


def paint(pixels: np.ndarray, item: dict) -> None:
    """Draws one object inside its box.

    An object may have an `angle` in radians, by which it is turned, and be `dim`: a share of black.
    """
    x0, y0, x1, y1 = item["box"]
    x = np.arange(x0, x1, dtype=np.float32)[None] + np.float32(0.5 - item["centre"][0])
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - item["centre"][1])
    if "angle" in item:
        cos, sin = math.cos(item["angle"]), math.sin(item["angle"])
        x, y = cos * x + sin * y, cos * y - sin * x
    radius = item["diameter"] / 2
    distance = DISTANCES[item["shape"]](x / radius, y / radius) * radius
    colour = np.array(COLOURS[item["colour"]], np.float32) * (1 - item.get("dim", 0))
    ink = 0.4 * colour + 120 if colour @ LUMA < DARK else 0.5 * colour
    # A rim without texture keeps the outline whole.
    amount = _TEXTURES[item["texture"]](x, y) * np.clip(0.5 - RIM - distance, 0, 1)
    inked = colour + amount[..., None] * (ink - colour)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    part = pixels[y0:y1, x0:x1]
    part += cover * (inked - part)


def _stripes(x, y):
    """Diagonal stripes with soft edges."""
    phase = ((x + y) * np.float32(0.7071 / PERIOD)) % 1
    return np.clip((np.abs(phase - 0.5) - 0.25) * PERIOD + 0.5, 0, 1)


def _dots(x, y):
    dx, dy = (x / PERIOD + 0.5) % 1 - 0.5, (y / PERIOD + 0.5) % 1 - 0.5
    return np.clip((0.3 - np.hypot(dx, dy)) * PERIOD + 0.5, 0, 1)


_TEXTURES = {
    "plain": lambda x, y: np.zeros((1, 1), np.float32), "striped": _stripes, "dotted": _dots,
    "checked": lambda x, y: (np.floor(x * (1.6 / PERIOD)) + np.floor(y * (1.6 / PERIOD))) % 2,
}
