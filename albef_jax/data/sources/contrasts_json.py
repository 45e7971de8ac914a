"""Captions beside wrong ones in the JSON files of ARO, SugarCrepe and Winoground."""

from collections.abc import Sequence
import os
import posixpath

import numpy as np

from albef_jax.data.images.pillow import cut, decode, open_image
from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of

BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


class ContrastsSource(ManifestSource):
    """Rows of one of three formats, known by their keys:

    - ARO (Yuksekgonul et al., https://arxiv.org/abs/2210.01936), a list: `image_path`,
      `true_caption`, `false_caption` and the part of the image that they speak of, `bbox_x`,
      `bbox_y`, `bbox_w`, `bbox_h`, where there is one.
    - SugarCrepe (Hsieh et al., https://arxiv.org/abs/2306.14610), an object: `filename`, `caption`,
      `negative_caption`.
    - Winoground (Thrush et al., https://arxiv.org/abs/2204.03162), a row per line: `image_0`,
      `image_1`, `caption_0`, `caption_1`, `collapsed_tag`. A row is two examples of one group: the
      true caption of the one is the foil of the other. Images are named without an ending: `.png`
      is added where there is none.

    The kind of an example is its file's name, and of Winoground the tag.

    Args:
        files, image_roots: see `ManifestSource`.

    Raises:
        UserError: see `ManifestSource`.
    """

    row_format = '{"filename": ..., "caption": ..., "negative_caption": ...}'
    row_keys = ("id", "filename", "caption", "negative_caption", "image_path", "true_caption",
                "false_caption", "image_0", "image_1", "caption_0", "caption_1")
    fields = pairs() | {"foil": {}, "kind": {}, "group": {}}

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = ()):
        super().__init__(files, image_roots, "contrasts")

    def add(self, row) -> None:
        if isinstance(row, dict) and "image_0" in row:
            self._add_winoground(row)
        elif isinstance(row, dict) and "true_caption" in row:
            image, text, foil = fields_of(row, image_path=str, true_caption=str, false_caption=str)
            self._add(image, text, foil, box=_box_of(row))
        else:
            self._add(*fields_of(row, filename=str, caption=str, negative_caption=str))

    def _add_winoground(self, row):
        images, captions = fields_of(row, image_0=str, image_1=str), fields_of(
            row, caption_0=str, caption_1=str)
        kind = row.get("collapsed_tag") or self._file()
        for image, text, foil in zip(images, captions, captions[::-1]):
            image = image if os.path.splitext(image)[1] else f"{image}.png"
            self._add(image, text, foil, kind, group=len(self) // 2)

    def _add(self, image, text, foil, kind=None, group=None, box=None):
        self.append((image, box), text=[text], foil=foil, kind=str(kind or self._file()),
                    group=group)

    def _file(self):
        return posixpath.splitext(posixpath.basename(self.manifest))[0]

    def name(self, index: int) -> str:
        image, box = self.names[index]
        return f"{image} {box}" if box else image

    def image(self, index: int) -> bytes | np.ndarray:
        """The file, or the part of its pixels that the captions speak of."""
        image, box = self.names[index]
        return cut(decode(open_image(self.read(image))), box) if box else self.read(image)


def _box_of(row) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the part of a row's image; None for all of it."""
    if BOX[0] not in row:
        return None
    x, y, width, height = fields_of(row, **dict.fromkeys(BOX, int))
    return x, y, x + width, y + height
