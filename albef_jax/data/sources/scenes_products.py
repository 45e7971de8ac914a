"""The embedded products as a source: texts, and features that are pixels and mel bands."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from albef_jax.data.media import mel_spectrogram, standardised
from albef_jax.data.sources.base import Source
from albef_jax.data.sources.regions import Regions
from albef_jax.scenes import products

PATCH = 12  # pixels to which a region is resized
BANDS, WINDOW = 24, 256  # mel bands of a sound; samples of a frame, without overlap
FRAMES = 1 + products.SOUND_RATE // WINDOW  # of a sound
QUIET = 1e-3  # power that counts as silence
WIDTHS = {"regions": 3 * PATCH**2, "video": 3 * products.FRAME_SIDE**2, "audio": FRAMES}
LENGTHS = {"regions": 3, "video": products.FRAMES, "audio": BANDS}


class ScenesProductsSource(Source):
    """Products whose every property is known, see `scenes.products`; made when they are read.

    Regions are crops of the object, of what is beside it and of the whole image; clips are frames;
    sounds are 24 mel bands over time (`LENGTHS` and `WIDTHS`). Classes are the categories.

    Args:
        split, size, seed, copies, presence, wrong: see `scenes.products.Products`.
        complete: leave out products that lack a modality.
    """

    limits = dict(presence=(0.0, 1.0))  # numbers; the rest is for `check`

    def __init__(self, split: str = "train", size: int = 2400, seed: int = 0, copies: int = 4,
                 presence: Sequence[float] = products.PRESENCE, wrong: float = 0.0,
                 complete: bool = False):
        self.products = products.Products(split, size, seed, copies, tuple(presence), wrong)
        self._split, self._rows = split, np.arange(size)
        if complete:
            self._rows = np.array([i for i in range(size) if len(
                self.products.graph(i)["says"]) == len(products.SAID)], np.int64)
        self.graph = functools.lru_cache(None)(self._graph)
        self._features = functools.lru_cache(None)(self._make)
        self.fields = {name: {"optional": True} for name in products.SAID}
        self.fields["title"]["cleaning"] = "none"
        for name, width in WIDTHS.items():
            self.fields[name]["width"] = width
        self.fields |= {"label": {"class_names": tuple(products.CATEGORIES)}, "coarse": {},
                        "fine": {}}
        self.fingerprint = (f"scenes_products {products.VERSION} {split} {size} {seed} {copies} "
                            f"{tuple(presence)} {wrong} {complete}")

    @classmethod
    def check(cls, split="train", size=2400, seed=0, copies=4, presence=products.PRESENCE,
              wrong=0.0, complete=False):
        """See `Source.check`."""
        del complete
        products.check(split, size, seed, copies, presence, wrong)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f"scenes/products/{self._split}[{self._rows[index]}]"

    def _graph(self, index: int) -> dict:
        """See `scenes.products`."""
        return self.products.graph(int(self._rows[index]))

    def modalities(self, index: int) -> tuple[str, ...]:
        return tuple(self.graph(index)["says"])

    def title(self, index: int) -> list[str]:
        return [self._say(index, "title", products.title)] if self._has(index, "title") else []

    def table(self, index: int) -> list[tuple[str, str]] | None:
        return self._say(index, "table", products.table) if self._has(index, "table") else None

    def regions(self, index: int) -> Regions | None:
        return self._features(index, "regions") if self._has(index, "regions") else None

    def video(self, index: int) -> np.ndarray | None:
        return self._features(index, "video") if self._has(index, "video") else None

    def audio(self, index: int) -> np.ndarray | None:
        return self._features(index, "audio") if self._has(index, "audio") else None

    def label(self, index: int) -> int:
        return list(products.CATEGORIES).index(self.coarse(index))

    def coarse(self, index: int) -> str:
        return self.graph(index)["category"]

    def fine(self, index: int) -> str:
        return str(self.graph(index)["instance"])

    def picture(self, index: int) -> np.ndarray | None:
        """The image as people look at it, uint8 [h, w, 3]; None where there is none."""
        return self._say(index, "regions", products.image)[0] if self._has(index, "regions") else (
            None)

    def clip(self, index: int) -> np.ndarray:
        """The frames of a product with a video, uint8 [t, h, w, 3]."""
        return self._say(index, "video", products.clip)

    def words(self, step: int = 1) -> Iterator[str]:
        for index in range(0, len(self), step):
            yield from self.title(index)
            yield from (text for pair in self.table(index) or () for text in pair)

    def _has(self, index: int, modality: str) -> bool:
        return modality in self.graph(index)["says"]

    def _say(self, index: int, modality: str, say):
        stream = list(products.SAID).index(modality)
        return say(self.graph(index)["says"][modality],
                   self.products.rng(int(self._rows[index]), 1 + stream))

    def _make(self, index: int, modality: str):
        """Features of a modality that the product has."""
        if modality == "regions":
            pixels, boxes = self._say(index, "regions", products.image)
            boxes = np.array([*boxes, [0, 0, products.SIDE, products.SIDE]], np.float32)
            image = Image.fromarray(pixels)
            crops = [np.asarray(image.resize((PATCH, PATCH), Image.Resampling.BILINEAR, tuple(box)))
                     for box in boxes.tolist()]
            return Regions(centred(np.stack(crops)), boxes, image.size)
        if modality == "video":
            return centred(self.clip(index))
        samples = self._say(index, "audio", products.sound).astype(np.float64)
        power = mel_spectrogram(samples, products.SOUND_RATE, BANDS, WINDOW, WINDOW)
        return standardised(np.log(power + QUIET)).astype(np.float16)


def centred(pixels: np.ndarray) -> np.ndarray:
    """Rows of pixels uint8 [n, ...] as numbers float16 [n, d] around 0."""
    return (pixels.reshape(len(pixels), -1) / 127.5 - 1).astype(np.float16)
