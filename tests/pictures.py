"""Ordinary, odd and broken image files, as fixtures for the rooms that read images."""

import io

import numpy as np
import pytest
from PIL import Image


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth random colours with some fine grain, like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int32)
    grain = rng.integers(-10, 11, smooth.shape)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def odd_files() -> dict[str, bytes]:
    """Name -> contents of valid but unusual images."""
    palette = photo(50, 60).quantize(64)
    return {
        "gray.jpg": encode(photo(50, 60).convert("L")),
        "cmyk.jpg": encode(photo(50, 60).convert("CMYK")),
        "palette.png": encode(palette, "PNG", transparency=0),
        "pixel.jpg": encode(photo(1, 1)),
        "pixel.png": encode(photo(1, 1), "PNG"),
        "wide.jpg": encode(photo(4, 900)),
        "tall.png": encode(photo(700, 2), "PNG"),
    }


@pytest.fixture(scope="session")
def broken_files() -> dict[str, bytes]:
    """Name -> contents of images that cannot be read."""
    jpeg, png = encode(photo(60, 80)), encode(photo(60, 80), "PNG")
    return {
        "corrupt.jpg": b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4,
        "zero.jpg": b"",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "text.jpg": b"<html>404</html>",
        "cut.png": png[: len(png) // 2],
    }


@pytest.fixture(scope="session")
def photo_jpeg():
    """`photo_jpeg(height, width, seed)` -> the contents of a JPEG file."""
    return lambda height, width, seed=0: encode(photo(height, width, seed), quality=90)
