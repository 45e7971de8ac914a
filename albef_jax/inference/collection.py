"""What the shell commands look through: a folder of images, a manifest, or encoded features."""

import dataclasses
import zipfile

import numpy as np
from etils import epath

from albef_jax.data.sources.json_source import JsonSource
from albef_jax.errors import UserError
from albef_jax.files import absolute, completed, is_remote, local_copy
from albef_jax.inference.features import Index
from albef_jax.inference.inputs import StoredImage

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclasses.dataclass
class Collection:
    """Images, and texts where there are any.

    Attributes:
      images: n paths or stored images. names: their names.
      captions: m texts. caption_images: int `[m]`, the image of each.
      source, image_root: absolute paths of what was opened ('' for no root).
    """

    images: list
    names: list[str]
    captions: list[str]
    caption_images: np.ndarray
    source: str
    image_root: str = ""


def open_collection(path, image_root=None):
    """Lists what a folder or a manifest holds; images are read later.

    Args:
      path: a folder, whose images are found at any depth, or a manifest `.json` (README.md).
      image_root: folder or .tar with the images of a manifest; None: the folder of the manifest.

    Raises:
      UserError: there is no such file, or no image in it.
    """
    path = epath.Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix != ".json" or not path.exists():
        raise UserError(f"{path} is neither a folder of images nor a manifest .json; give one of "
                        "these.")
    source = JsonSource([str(path)], [image_root] if image_root else [], merge_images=True)
    captions = [source.get(i, "text") for i in range(len(source))]
    return Collection([StoredImage(source, i) for i in range(len(source))],
                      [source.name(i) for i in range(len(source))],
                      [text for texts in captions for text in texts],
                      np.repeat(np.arange(len(source)), [len(texts) for texts in captions]),
                      absolute(path), absolute(image_root) if image_root else "")


def _open_folder(path):
    images = sorted(_images_in(path))
    if not images:
        raise UserError(f"The folder {path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                        "give another one, or a manifest .json.")
    return Collection(images, [str(file.relative_to(path)) for file in images], [],
                      np.zeros(0, np.int64), absolute(path))


def _images_in(folder):
    for path in folder.iterdir():
        # On an object store every question costs a request, and no folder is named so.
        if path.suffix.lower() in IMAGE_SUFFIXES and (is_remote(path) or not path.is_dir()):
            yield path
        elif path.is_dir():
            yield from _images_in(path)


@dataclasses.dataclass
class Features:
    """A collection's features, as `albef embed` writes them into an .npz file.

    Attributes:
      image_names: `[n]`. image_features: float32 `[n, e]`.
      captions: `[m]`. caption_images: int `[m]`, rows of the images. caption_features: `[m, e]`.
      source, image_root: of the collection, to read its images again.
      model: fingerprint of the model; features of another one have nothing in common.
    """

    image_names: np.ndarray
    image_features: np.ndarray
    captions: np.ndarray
    caption_images: np.ndarray
    caption_features: np.ndarray
    source: str
    image_root: str
    model: str

    def save(self, path):
        """Writes the file, complete or not at all.

        Raises:
          UserError: it cannot be written.
        """
        try:
            with completed(path) as unfinished, open(unfinished, "wb") as file:
                np.savez(file, **dataclasses.asdict(self))
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); give another --out, or "
                            "mend the cause.") from None

    @classmethod
    def load(cls, path):
        """Reads what `save` wrote.

        Raises:
          UserError: it is something else.
        """
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
