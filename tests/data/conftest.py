"""A folder of ordinary, odd and broken images, and the config that reads it."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from albef_jax.config import default_config

BROKEN = {"corrupt.jpg", "zero.jpg", "cut.jpg", "text.jpg", "cut.png"}
ODD = {"gray.jpg", "cmyk.jpg", "palette.png", "pixel.jpg", "pixel.png", "wide.jpg", "tall.png"}


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


@pytest.fixture
def data_config():
    config = default_config().data.copy_and_resolve_references().unlock()
    config.update(engine="pillow", image_size=32, text_length=8, vocab_size=200, workers=2)
    return config


@pytest.fixture
def make_folder(tmp_path):
    """Writes images and a manifest `rows.json`; `missing` names are only in the manifest."""

    def make(files: dict[str, bytes], missing=()) -> dict:
        rows = []
        for name in [*files, *missing]:
            if name in files:
                (tmp_path / name).write_bytes(files[name])
            rows.append({"image": name, "caption": [f"picture of {name[:3]}", "a picture"]})
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return dict(kind="json", files=(str(tmp_path / "rows.json"),), image_roots=(str(tmp_path),))

    return make


@pytest.fixture(scope="session")
def photo_jpeg():
    return lambda height, width, seed=0: encode(photo(height, width, seed), quality=90)
