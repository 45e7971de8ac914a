"""What the shell commands look through: a folder of images, a manifest, or encoded features."""

from collections import Counter
import dataclasses
import itertools
import os
import sys
import zipfile

from etils import epath
import numpy as np

from albef_jax.data.sources.json_source import JsonSource
from albef_jax.errors import UserError, listed
from albef_jax.files import absolute, completed, is_remote, local_copy
from albef_jax.inference.features import Index
from albef_jax.inference.inputs import StoredImage

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png",
                  ".ppm", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass
class Collection:
    """Images, and texts where there are any."""

    images: list  # n paths or stored images
    names: list[str]  # of the images
    captions: list[str]  # m texts
    caption_images: np.ndarray  # int `[m]`, the image of each
    source: str  # absolute path of what was opened
    image_root: str = ""  # absolute, '' for none


def open_collection(path, image_root=None):
    """Lists what a folder or a manifest holds, UserError if nothing; images are read later.

    Args:
      path: a folder, whose images are found at any depth, or a manifest `.json` (docs/own_data.md).
      image_root: folder or .tar with the images of a manifest; None: the folder of the manifest.
    """
    path = epath.Path(path)
    if path.is_dir():
        skipped = Counter()
        images = sorted(_images_in(path, skipped, set()))
        if skipped:
            kinds = listed((f"{ending or 'without an ending'}: {count}"
                            for ending, count in skipped.most_common()), 5)
            print(f"skipped {skipped.total()} files of {path} that are no images by their names "
                  f"({kinds})", file=sys.stderr)
        if not images:
            raise UserError(f"The folder {path} holds no image "
                            f"({', '.join(sorted(IMAGE_SUFFIXES))}); give another one, or a "
                            "manifest .json.")
        return Collection(images, [str(image.relative_to(path)) for image in images], [],
                          np.zeros(0, np.int64), absolute(path))
    if path.suffix != ".json" or not path.exists():
        raise UserError(f"{path} is neither a folder of images nor a manifest .json; give one of "
                        "these.")
    source = JsonSource([str(path)], [image_root] if image_root else [], merge_images=True)
    rows = range(len(source))
    captions = [source.get(row, "text") for row in rows]
    return Collection([StoredImage(source, row) for row in rows], list(map(source.name, rows)),
                      list(itertools.chain(*captions)), np.repeat(rows, list(map(len, captions))),
                      absolute(path), absolute(image_root) if image_root else "")


def _images_in(folder, skipped, seen):
    """The images at any depth, each folder once; counts other files by ending in `skipped`."""
    place = os.path.realpath(folder) if not is_remote(folder) else os.fspath(folder)
    if place in seen:  # a link that leads back
        return
    seen.add(place)
    for path in folder.iterdir():
        # On an object store every question costs a request, and no folder is named so.
        if path.suffix.lower() in IMAGE_SUFFIXES and (is_remote(path) or not path.is_dir()):
            yield path
        elif path.is_dir():
            yield from _images_in(path, skipped, seen)
        else:
            skipped[path.suffix.lower()] += 1


@dataclasses.dataclass
class Features:
    """A collection's features, as `albef embed` writes them into an .npz file."""

    image_names: np.ndarray  # `[n]`
    image_features: np.ndarray  # float32 `[n, e]`
    captions: np.ndarray  # `[m]`
    caption_images: np.ndarray  # int `[m]`, rows of the images
    caption_features: np.ndarray  # float32 `[m, e]`
    source: str  # of the collection, to read its images again
    image_root: str
    model: str  # its fingerprint: features of another one have nothing in common

    def save(self, path):
        """Writes the file as a whole or not at all; UserError if it cannot."""
        try:
            with completed(path) as unfinished, open(unfinished, "wb") as file:
                np.savez(file, **dataclasses.asdict(self))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); give another --out, or "
                            "mend the cause.") from None

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote; UserError if it is something else."""
        try:
            with np.load(local_copy(path)) as arrays:
                fields = {field.name: arrays[field.name] for field in dataclasses.fields(cls)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or "not features of `albef embed`"
            raise UserError(f"{path} cannot be read ({reason}); make it with `albef embed`, or "
                            "give a folder of images or a manifest.") from None
        return cls(**{name: str(array) if array.dtype.kind == "U" and not array.ndim else array
                      for name, array in fields.items()})

    def index(self, kind):
        """The images or the captions as an `Index`; images can be read while they are in place."""
        if kind == "text":
            return Index("text", list(self.captions), list(self.captions), self.caption_features)
        return Index("image", _Images(self), list(self.image_names), self.image_features)


class _Images:
    """The images behind features, opened when the first is asked for."""

    def __init__(self, features):
        self._features, self._by_name = features, None

    def __getitem__(self, row):
        features = self._features
        if self._by_name is None:
            collection = open_collection(features.source, features.image_root or None)
            self._by_name = dict(zip(collection.names, collection.images))
        name = str(features.image_names[row])
        if name not in self._by_name:
            raise UserError(f"The image {name} is gone from {features.source}; run `albef embed` "
                            "again, or search without --rerank.")
        return self._by_name[name]
