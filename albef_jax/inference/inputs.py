"""What people hand to a model: images in any form, texts, one or many; made into batches."""

import dataclasses
import functools
import io
import os

import numpy as np
from PIL import Image

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.data.images.pillow import decode
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError
from albef_jax.files import read_bytes


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a data source, read when it is needed."""

    source: Source
    index: int


def as_images(images):
    """One image or several -> a list; UserError if there is none."""
    one = isinstance(images, (str, os.PathLike, bytes, io.IOBase, Image.Image, StoredImage)) or (
        isinstance(images, np.ndarray) and images.ndim < 4)
    return _not_empty([images] if one else _listed(images, "images"), "images")


def as_texts(texts):
    """One text or several -> a list; UserError if there is none, or something else."""
    texts = _not_empty([texts] if isinstance(texts, str) else _listed(texts, "texts"), "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"Text {row} is a {type(text).__name__}; give a str or a list of str.")
    return texts


def not_blank(text, what):
    """A query or a question; UserError if it is blank: a model would answer that too."""
    if not text.strip():
        raise UserError(f"The {what} is blank; write what you want to know.")
    return text


def paired(n, m, all_pairs, what):
    """Rows of images and of texts, int `[p]` each: pair by pair, or each with each.

    UserError unless there are as many of both, or one of one; `what` says what the images are.
    """
    if all_pairs:
        return np.divmod(np.arange(n * m), m)
    if n == m or 1 in (n, m):
        return np.broadcast_arrays(np.arange(n), np.arange(m))
    raise UserError(f"match got {what} and {m} texts; give as many of both, or set all_pairs=True "
                    "for each image with each text.")


def only(values, what):
    """A list that must have one element; UserError if it has several."""
    if len(values) != 1:
        raise UserError(f"Got {len(values)} {what}; ask about one at a time.")
    return values


def _listed(values, what):
    try:
        return list(values)
    except TypeError:
        raise UserError(f"The {what} are a {type(values).__name__}; give one or a list.") from None


def _not_empty(values, what):
    if not values:
        raise UserError(f"The list of {what} is empty; give at least one.")
    return values


def raw_image(image):
    """An image as data sources give them: an encoded file, or pixels uint8 `[h, w, 3]`.

    Args:
      image: a path, an encoded file as bytes or open to be read, a PIL image, pixels uint8 `[h, w]` or `[h, w, 3]`,
        or a `StoredImage`.

    Raises:
      OSError: it cannot be read. UserError: it is none of these.
    """
    if isinstance(image, Image.Image):
        return np.asarray(decode(image))
    if isinstance(image, StoredImage):
        return image.source.get(image.index, "image")
    if isinstance(image, (str, os.PathLike)):
        return read_bytes(image)
    if isinstance(image, io.IOBase):
        image.seek(0)
        return image.read()
    if isinstance(image, np.ndarray):
        if not image.size:
            raise UserError(f"An image array has no pixels: its shape is {list(image.shape)}.")
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(f"An image array is {image.dtype}{list(image.shape)}; give uint8 "
                            "pixels of shape [height, width, 3].")
    elif not isinstance(image, bytes):
        raise UserError(f"An image is a {type(image).__name__}; give a path, bytes, a PIL image "
                        "or uint8 pixels.")
    return image


def as_value(field, value):
    """What people give for a field -> a function that reads its raw value.

    Of an image any form, of several of them a list; of a text a str. Such a function is taken as it
    is.
    """
    if callable(value):
        return value
    if isinstance(field, ImageField):
        if isinstance(value, (list, tuple)):
            return lambda: [raw_image(image) for image in value]
        return functools.partial(raw_image, value)
    if isinstance(field, TextField) and isinstance(value, str):
        return lambda: [value]
    return lambda: value


def name_of(value, number):
    """The file or the name in its source of an image, of several those of all; else `number`."""
    if isinstance(value, StoredImage):
        return value.source.name(value.index)
    if isinstance(value, (list, tuple)) and value:
        return " and ".join(dict.fromkeys(name_of(one, number) for one in value))
    return os.fspath(value) if isinstance(value, (str, os.PathLike)) else str(number)


def pad(array, batch_size):
    """Repeats the last row so that few shapes are compiled: to 1, b, 2b, 4b, ... rows."""
    rows = 1 if len(array) == 1 else batch_size
    while rows < len(array):
        rows *= 2
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
