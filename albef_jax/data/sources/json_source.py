"""Image-text pairs listed in manifests, the format of the public ALBEF code and those like it."""

import functools
import sys
from collections.abc import Sequence

import numpy as np

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.index import Row, open_index
from albef_jax.data.sources.json_rows import Manifests
from albef_jax.data.sources.manifest import ManifestSource

# What people call the columns; the first that a row has is taken.
IMAGE = ("image", "file_name", "filename", "filepath", "image_path", "path", "img", "url",
         "image_id")
CAPTION = ("caption", "captions", "text", "sentence", "sentences", "title")


class JsonSource(ManifestSource):
    """Rows `{"image": name, "caption": text or [texts]}` of one or several manifests.

    Made for millions of rows: names and captions are columns in files, see `index`.

    Args:
        files: JSON lists, lines of JSON, captions files of COCO, CSV or TSV (see `ManifestSource`).
        image_roots: see `ManifestSource`.
        merge_images: make one example of all rows with the same image name.
        image, caption: names of the columns; '': the first of `IMAGE` and of `CAPTION` that a row
            has.
    """

    row_format = '{"image": ..., "caption": ...}'
    fields = pairs()

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (),
                 merge_images: bool = False, image: str = "", caption: str = ""):
        self._merge_images = merge_images
        self._columns = Columns(image, caption)
        named = f" {image} {caption}" if image or caption else ""
        super().__init__(files, image_roots, f"json merge={bool(merge_images)}{named}")

    def read_manifests(self, files: list[str]) -> tuple[dict[str, bytes], list[str]]:
        keys = self._columns.keys
        self._index = open_index(files, functools.partial(
            Manifests, files, self._columns, self.row_format, keys=keys), str(keys))
        # The rows of example i are _order[_starts[i] : _starts[i + 1]].
        self._image_ids = image_ids = self._index.image_ids
        self._order = self._starts = range(len(image_ids) + 1)
        if self._merge_images:
            self._order = np.argsort(image_ids, kind="stable")
            self._starts = np.concatenate([[0], np.cumsum(np.bincount(image_ids))])
            self._image_ids = np.arange(len(self), dtype=np.int32)
        return self._index.digests, list(self._index.problems)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def name(self, index: int) -> str:
        return self._index.names[int(self._order[self._starts[index]])].as_py()

    def text(self, index: int) -> list[str]:
        rows = self._order[self._starts[index] : self._starts[index + 1]]
        return [text for row in rows for text in self._index.captions[int(row)].as_py()]


class Columns:
    """Makes an image name and captions of a row, and says once what is taken for them.

    `image`, `caption`: as of `JsonSource`.
    """

    def __init__(self, image: str, caption: str):
        self._image, self._caption = ((image,) if image else IMAGE,
                                      (caption,) if caption else CAPTION)
        self.keys = (*self._image, *self._caption)
        self._told = {("image", "caption")}

    def __call__(self, row) -> Row:
        """Name and captions of a row; raises ValueError."""
        if isinstance(row, dict):
            image, caption = (next((key for key in keys if key in row), keys[0])
                              for keys in (self._image, self._caption))
            name, texts = row.get(image), row.get(caption)
            if texts == []:
                raise ValueError("has an empty caption list; give it a caption or remove the row")
            texts = [texts] if isinstance(texts, str) else texts
            if isinstance(name, str) and isinstance(texts, list) and all(
                    isinstance(text, str) for text in texts):
                self._tell(image, caption)
                return name, texts
        raise ValueError(f'must be an object with "{self._image[0]}" (a text) and '
                         f'"{self._caption[0]}" (a text or a list of texts), but is '
                         f"{str(row)[:100]}")

    def _tell(self, image: str, caption: str) -> None:
        if (image, caption) not in self._told:
            self._told.add((image, caption))
            print(f"{image!r} is taken for the image and {caption!r} for the caption",
                  file=sys.stderr)
