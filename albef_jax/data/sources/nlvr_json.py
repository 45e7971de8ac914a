"""Texts about two images (NLVR2) in the JSON format of the public ALBEF code."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from albef_jax.data.sources.manifest import ManifestSource, fields_of
from albef_jax.errors import UserError

LABELS = {"False": 0, "True": 1}


class NlvrJsonSource(ManifestSource):
    """Rows `{"sentence": text, "label": "True" or "False", "images": [name, name]}`.

    With `crops`, rows have one picture, as those of NLVR version 1: `"image": name`.

    Args:
        files, image_roots: see `ManifestSource`.
        crops: two rectangles (left, top, right, bottom) in pixels, the views of the one picture.

    Raises:
        UserError: see `ManifestSource`; `crops` are not two rectangles.
    """

    row_format = '{"sentence": ..., "label": "True", "images": [..., ...]}'
    fields = ("label",)
    views = 2
    class_names = ("false", "true")

    def __init__(
        self,
        files: Sequence[str],
        image_roots: Sequence[str] = (),
        crops: Sequence[Sequence[int]] = (),
    ):
        self._crops = tuple(map(tuple, crops))
        if self._crops and not _are_two_rectangles(self._crops):
            raise UserError(
                f"data.source.crops is {self._crops}; give two rectangles (left, top, right, "
                "bottom) in pixels, such as ((0, 0, 250, 100), (150, 0, 400, 100))."
            )
        self._sentences: list[str] = []
        self._labels: list[int] = []
        super().__init__(files, image_roots, f"nlvr crops={self._crops}")

    def add(self, row) -> None:
        sentence, label = fields_of(row, sentence=str, label=(str, bool))
        if str(label) not in LABELS:
            raise ValueError(f'has the label {label!r}; use "True" or "False"')
        self.names.append(self._images_of(row))
        self._sentences.append(sentence)
        self._labels.append(LABELS[str(label)])

    def captions(self, index: int) -> list[str]:
        return [self._sentences[index]]

    def label(self, index: int) -> int:
        return self._labels[index]

    def group(self, index: int) -> str:
        """The sentence: NLVR2 asks whether it is judged rightly of all its pairs of images."""
        return self._sentences[index]

    def image(self, index: int) -> bytes | np.ndarray:
        return self.view(index, 0)

    def view(self, index: int, number: int) -> bytes | np.ndarray:
        names = self.names[index]
        return self._cut(names, number) if self._crops else self.read(names[number])

    def view_name(self, index: int, number: int) -> str:
        return super().view_name(index, number) if self._crops else self.names[index][number]

    def _images_of(self, row) -> str | tuple[str, str]:
        if self._crops:
            return fields_of(row, image=str)[0]
        if isinstance(row.get("image"), str) and "images" not in row:
            raise ValueError('has one "image"; give the source crops, the two parts to look at')
        (images,) = fields_of(row, images=list)
        if len(images) != 2 or not all(isinstance(name, str) for name in images):
            raise ValueError(f'must have the names of two images as "images", but has {images}')
        return tuple(images)

    def _cut(self, name: str, number: int) -> np.ndarray:
        """A part of the picture, uint8 [h, w, 3]; raises OSError."""
        with Image.open(io.BytesIO(self.read(name))) as picture:
            left, top, right, bottom = self._crops[number]
            if right > picture.width or bottom > picture.height:
                raise OSError(f"{self._crops[number]} is not inside its {picture.width} x "
                              f"{picture.height} pixels")
            return np.asarray(picture.convert("RGB").crop((left, top, right, bottom)))


def _are_two_rectangles(crops: tuple) -> bool:
    return len(crops) == 2 and all(
        len(box) == 4 and 0 <= box[0] < box[2] and 0 <= box[1] < box[3] for box in crops
    )
