"""RandAugment (Cubuk et al., arXiv:1909.13719) with the ten operations of the public ALBEF code.

Draws are plain values, made once in numpy; the operations here work on Pillow images, those in
`tf.py` on tensors.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = 128  # grey level of pixels that come from outside the image
APPLY_PROBABILITY = 0.5
MAX_MAGNITUDE = 10

OPERATIONS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY",
              "TranslateX", "TranslateY", "Rotate")

Operation = tuple[str, float]
"""Name and value: a factor, a shear, an offset in pixels or an angle in degrees."""


def draw_operations(rng: np.random.Generator, count: int,
                    magnitude: float) -> tuple[Operation, ...]:
    """Draws `count` operations with replacement; one that is skipped becomes Identity."""
    names = rng.integers(len(OPERATIONS), size=count)
    skipped, signs = rng.random((2, count))
    return tuple(
        ("Identity", 0.0) if u > APPLY_PROBABILITY else operation(OPERATIONS[name], magnitude, sign)
        for name, u, sign in zip(names, skipped, signs))


def operation(name: str, magnitude: float, sign: float) -> Operation:
    """An operation at a magnitude of 0..10; `sign` in [0, 1) decides the direction."""
    level = magnitude / MAX_MAGNITUDE
    if name in ("Brightness", "Sharpness"):
        return name, level * 1.8 + 0.1
    most = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 10, "TranslateY": 10, "Rotate": -30}
    return name, (-1.0 if sign > 0.5 else 1.0) * level * most.get(name, 0.0)


def affine(name: str, value: float, width: int, height: int) -> tuple[float, ...] | None:
    """The affine map of a geometric operation, None for the others.

    Returns:
        (a, b, c, d, e, f): the output pixel with index (x, y) shows the input at index
        (a x + b y + c, d x + e y + f).
    """
    if name == "Rotate":
        cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
        x, y = width / 2, height / 2
        return (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return {"ShearX": (1.0, -value, 0.0, 0.0, 1.0, 0.0),
            "ShearY": (1.0, 0.0, 0.0, -value, 1.0, 0.0),
            "TranslateX": (1.0, 0.0, value, 0.0, 1.0, 0.0),
            "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, value)}.get(name)


def apply_operation(image: Image.Image, name: str, value: float) -> Image.Image:
    """Applies one operation to an RGB image of the same size."""
    if name == "AutoContrast":
        tables = (autocontrast_table(low, high) for low, high in image.getextrema())
        return image.point(np.concatenate(list(tables)).tolist())
    if name == "Equalize":
        return ImageOps.equalize(image)
    if name == "Brightness":
        return image.point(brightness_table(value).tolist() * 3)
    if name == "Sharpness":
        return ImageEnhance.Sharpness(image).enhance(value)
    coefficients = affine(name, value, image.width, image.height)
    return image if coefficients is None else _warp(image, coefficients)


def brightness_table(factor: float) -> np.ndarray:
    """New grey level uint8 [256] of each old one."""
    return np.clip(np.arange(256) * factor, 0, 255).astype(np.uint8)


def autocontrast_table(low: int, high: int) -> np.ndarray:
    """New grey level uint8 [256] of each old one for a channel that spans low..high.

    The public code stretches with the offset `-low` in uint8 arithmetic, that is 256 - low: a
    channel without a black pixel turns white. The published models were trained with that, and
    it is kept; a plain stretch would use `-low` below.
    """
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    offset = -low % 256
    return np.clip((np.arange(256) + offset) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _warp(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """Bilinear warp that fades into the fill colour at the border."""
    # A frame of fill lets Pillow blend border pixels with it (it clamps at the edge otherwise).
    # Pillow measures at pixel centres, half a pixel from the index.
    margin = 2
    a, b, c, d, e, f = coefficients
    shift_x = c + margin + 0.5 - 0.5 * (a + b)
    shift_y = f + margin + 0.5 - 0.5 * (d + e)
    framed = ImageOps.expand(image, margin, (FILL,) * 3)
    return framed.transform(image.size, Image.Transform.AFFINE, (a, b, shift_x, d, e, shift_y),
                            Image.Resampling.BILINEAR, fillcolor=(FILL,) * 3)
