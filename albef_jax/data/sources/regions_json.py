"""Captions in manifests, and regions of their images in files of a detector."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.sources.region_files import open_all, open_regions
from albef_jax.data.sources.regions import Regions

TRIED = 10  # images whose regions are looked at for their width


class RegionsJsonSource(JsonSource):
    """Rows as of `JsonSource`, and the regions of their images in other files.

    The image `train2014/COCO_train2014_000000000042.jpg` is looked for in each of these under its
    name without the ending, with and without its folders, in small letters, and as the number 42.

    Args:
        files, image_roots, merge_images: see `JsonSource`; images are for people only.
        regions: files and folders of regions, see `region_files`, searched in this order.
    """

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (),
                 merge_images: bool = False, regions: Sequence[str] = ()):
        self._stores, self._wrong = open_all(open_regions, regions)
        super().__init__(files, image_roots, merge_images)

    def read_manifests(self, files):
        digests, problems = super().read_manifests(files)
        return digests, self._wrong + problems

    @functools.cached_property
    def fields(self):
        """With the fact `width`, from the first image whose regions can be read."""
        for index in itertools.islice(range(len(self)), TRIED):
            try:
                return pairs() | {"regions": {"width": self.regions(index).features.shape[1]}}
            except OSError:
                continue
        return pairs() | {"regions": {}}

    def regions(self, index: int) -> Regions:
        """Raises OSError where there are none that can be used."""
        for store, name in itertools.product(self._stores, names_of(self.name(index))):
            if name in store:
                return store.read(name)
        raise FileNotFoundError("no file of regions has it")


def names_of(image: str) -> list[str]:
    """The names under which files of regions may have an image, the most exact first."""
    whole = os.path.splitext(image)[0]
    plain = os.path.basename(whole)
    number = re.search(r"(\d+)$", plain)
    return list(dict.fromkeys([whole, plain, plain.lower(),
                               *([str(int(number[1]))] if number else [])]))
