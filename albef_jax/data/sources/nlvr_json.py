"""Texts about two images (NLVR2) in the JSON format of the public ALBEF code."""

import functools
from collections.abc import Sequence

import numpy as np

from albef_jax.data.images.pillow import cut, decode, open_image
from albef_jax.data.sources.base import pairs, reason
from albef_jax.data.sources.manifest import ManifestSource, fields_of
from albef_jax.errors import UserError, shown, wanted

LABELS = {"False": 0, "True": 1}


class NlvrJsonSource(ManifestSource):
    """Rows `{"sentence": text, "label": "True" or "False", "images": [name, name]}`.

    With `crops`, rows have one picture, as those of NLVR version 1: `"image": name`. An example's
    group is its sentence: NLVR2 asks whether it is judged rightly of all its pairs of images.

    Args:
        files, image_roots: see `ManifestSource`.
        crops: two rectangles (left, top, right, bottom) in pixels, the views of the one picture.

    Raises:
        UserError: see `ManifestSource`; `crops` are not two rectangles.
    """

    row_format = '{"sentence": ..., "label": "True", "images": [..., ...]}'
    fields = pairs(views=2) | {"label": {"class_names": ("false", "true")}, "group": {}}

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (),
                 crops: Sequence[Sequence[int]] = ()):
        self.check(crops=crops)
        self._crops = tuple(map(tuple, crops))
        super().__init__(files, image_roots, f"nlvr crops={self._crops}")

    @classmethod
    def check(cls, crops=(), **others):
        """Crops are two rectangles, or none; see `Source.check`."""
        if crops not in ((), []) and not _are_two_rectangles(crops):
            raise UserError(f"data.source.crops is {shown(crops)}; give two rectangles (left, top, "
                            "right, bottom) in pixels, such as ((0, 0, 250, 100), (150, 0, 400, "
                            "100)).")

    def add(self, row) -> None:
        sentence, label = fields_of(row, sentence=str, label=(str, bool))
        if str(label) not in LABELS:
            raise ValueError(f'has the label {label!r}; use "True" or "False"')
        self.append(self._images_of(row), text=[sentence], label=LABELS[str(label)], group=sentence)

    def image(self, index: int) -> list[bytes | np.ndarray]:
        """Both views."""
        names = self.names[index]
        if not self._crops:
            return [self._read_named(name) for name in names]
        picture = decode(open_image(self.read(names)))
        return [cut(picture, crop) for crop in self._crops]

    def views(self, index: int) -> list:
        if self._crops:
            return super().views(index)
        return [(name, functools.partial(self.read, name)) for name in self.names[index]]

    def _read_named(self, name: str) -> bytes:
        """As `read`; the reason why it cannot be read says of which image."""
        try:
            return self.read(name)
        except OSError as error:
            raise OSError(f"{name}: {reason(error)}") from None

    def _images_of(self, row) -> str | tuple[str, str]:
        if self._crops:
            return fields_of(row, image=str)[0]
        if isinstance(row.get("image"), str) and "images" not in row:
            raise ValueError('has one "image"; give the source crops, the two parts to look at')
        (images,) = fields_of(row, images=list)
        if len(images) != 2 or not all(isinstance(name, str) for name in images):
            raise ValueError(f'must have the names of two images as "images", but has {images}')
        return tuple(images)


def _are_two_rectangles(crops) -> bool:
    return isinstance(crops, tuple | list) and len(crops) == 2 and all(
        not wanted(box, (0,), (0, None)) and len(box) == 4 and box[0] < box[2] and box[1] < box[3]
        for box in crops)
