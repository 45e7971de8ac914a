"""Captions in manifests, and regions of their images in files of a folder."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence

import numpy as np

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.sources.regions import Regions
from albef_jax.files import read_bytes


class RegionsJsonSource(JsonSource):
    """Rows as of `JsonSource`, and for the image NAME.jpg a file NAME.npz with its regions.

    Such a file has `width` and `height` of the image, `boxes` [n, 4] (x1, y1, x2, y2 in pixels),
    `feats` [n, d], and where they are known `cls_id` [n] and `cls_conf` [n]. Nothing is unpickled.

    Args:
        files, image_roots, merge_images: see `JsonSource`; images are for people only.
        regions: folders of these files, searched in this order.
    """

    fields = pairs() | {"regions": {}}

    def __init__(
        self,
        files: Sequence[str],
        image_roots: Sequence[str] = (),
        merge_images: bool = False,
        regions: Sequence[str] = (),
    ):
        self._regions = [regions] if isinstance(regions, str) else list(regions)
        super().__init__(files, image_roots, merge_images)

    def regions(self, index: int) -> Regions:
        """Raises OSError where there is no usable file."""
        file = os.path.splitext(self.name(index))[0] + ".npz"
        for folder in self._regions:
            try:
                return parsed(read_bytes(os.path.join(folder, file)))
            except FileNotFoundError:
                continue
        raise FileNotFoundError("not found in any folder of regions")


def parsed(contents: bytes) -> Regions:
    """The regions in an .npz file.

    Raises:
        OSError: it is damaged, or lacks an array.
    """
    try:
        with np.load(io.BytesIO(contents)) as arrays:
            return Regions(arrays["feats"], arrays["boxes"],
                           (float(arrays["width"]), float(arrays["height"])),
                           *(arrays[name] if name in arrays else None
                             for name in ("cls_id", "cls_conf")))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OSError(f"no regions ({error})") from error
