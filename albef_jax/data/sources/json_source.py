"""Image-text pairs listed in JSON manifests, the format of the public ALBEF code."""

from collections.abc import Sequence

import numpy as np

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.index import Row, open_index
from albef_jax.data.sources.manifest import ManifestSource


class JsonSource(ManifestSource):
    """Rows `{"image": name, "caption": text or [texts]}` of one or several manifests.

    Made for millions of rows: names and captions are columns in files, see `index`.

    Args:
        files, image_roots: see `ManifestSource`.
        merge_images: make one example of all rows with the same image name.
    """

    row_format = '{"image": ..., "caption": ...}'
    fields = pairs()

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (),
                 merge_images: bool = False):
        self._merge_images = merge_images
        super().__init__(files, image_roots, f"json merge={bool(merge_images)}")

    def read_manifests(self, files: list[str]) -> tuple[dict[str, bytes], list[str]]:
        self._index = open_index(files, _parse, self.row_format)
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


def _parse(row) -> Row:
    """Name and captions of a row; raises ValueError."""
    if isinstance(row, dict):
        name, caption = row.get("image"), row.get("caption")
        if caption == []:
            raise ValueError("has an empty caption list; give it a caption or remove the row")
        if isinstance(name, str) and isinstance(caption, str):
            return name, [caption]
        if isinstance(name, str) and isinstance(caption, list) and all(
                isinstance(text, str) for text in caption):
            return name, caption
    raise ValueError('must be an object with "image" (a text) and "caption" (a text or a list of '
                     f"texts), but is {str(row)[:100]}")
