"""Coloured shapes with captions that describe them, which a tiny model can learn: no download."""

import numpy as np

from albef_jax.data.sources.base import Source, pairs

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220),
           "yellow": (230, 210, 50), "purple": (150, 60, 180), "white": (240, 240, 240)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 0.10, "large": 0.19}  # half the side, as a share of the image side
RELATIONS = {"left of": (0, 1), "above": (1, 0)}  # direction (y, x) from the first to the second


class SyntheticSource(Source):
    """Two shapes side by side or one above the other; a pure function of the index.

    Args:
        size: number of examples. image_size: side in pixels.
    """

    fields = pairs()
    limits = dict(size=(1, None), image_size=(16, 16384))

    def __init__(self, size: int, image_size: int = 64):
        self._size, self._image_size = size, image_size
        self.fingerprint = f"synthetic size={size} image_size={image_size}"

    def __len__(self) -> int:
        return self._size

    def name(self, index: int) -> str:
        return f"synthetic[{index}]"

    def image_id(self, index: int) -> int:
        return index

    def text(self, index: int) -> list[str]:
        (first, second), relation, _ = self._scene(index)
        first, second = " ".join(first), " ".join(second)
        return [f"A {first} is {relation} a {second}.",
                f"There is a {first} {relation} a {second}."]

    def image(self, index: int) -> np.ndarray:
        objects, relation, rng = self._scene(index)
        side = self._image_size
        pixels = np.full((side, side, 3), 96, np.int32)
        y, x = np.mgrid[:side, :side] + 0.5
        for place, (size, colour, shape) in zip((-1, 1), objects):
            offset = 0.25 * place * np.array(RELATIONS[relation]) + rng.uniform(-0.05, 0.05, 2)
            centre_y, centre_x = (0.5 + offset) * side
            inside = _inside(shape, x - centre_x, y - centre_y, SIZES[size] * side)
            pixels[inside] = COLOURS[colour]
        pixels += rng.integers(-12, 13, pixels.shape)
        return np.clip(pixels, 0, 255).astype(np.uint8)

    def _scene(self, index: int):
        """Two (size, colour, shape), how they stand, and the generator for the rest."""
        rng = np.random.Generator(np.random.Philox(index))
        objects = [tuple(options[rng.integers(len(options))]
                         for options in (list(SIZES), list(COLOURS), SHAPES)) for _ in range(2)]
        relation = list(RELATIONS)[rng.integers(len(RELATIONS))]
        return objects, relation, rng


def _inside(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Which pixels bool [h, w] belong to a shape around the origin."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= radius * 0.9
    return (abs(y) <= radius) & (2 * abs(x) <= y + radius)  # triangle, point upwards
