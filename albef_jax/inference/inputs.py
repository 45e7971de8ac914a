"""What people hand to a model: images in any form, texts, one or many; made into batches."""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import os

import numpy as np
from PIL import Image

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.data.images.pillow import WHOLE, PillowEngine, decode
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError
from albef_jax.files import read_bytes


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image of a data source, read when it is needed."""

    source: Source
    index: int


def as_images(images):
    """One image or several -> a list.

    Raises:
      UserError: there is none.
    """
    one = isinstance(images, (str, os.PathLike, bytes, Image.Image, StoredImage)) or (
        isinstance(images, np.ndarray) and images.ndim < 4)
    return _not_empty([images] if one else list(images), "images")


def as_texts(texts):
    """One text or several -> a list.

    Raises:
      UserError: there is none, or something is not a text.
    """
    texts = _not_empty([texts] if isinstance(texts, str) else list(texts), "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"Text {row} is a {type(text).__name__}; give a str or a list of str.")
    return texts


def only(values, what):
    """A list that must have one element.

    Raises:
      UserError: it has several.
    """
    if len(values) != 1:
        raise UserError(f"Got {len(values)} {what}; ask about one at a time.")
    return values


def _not_empty(values, what):
    if not values:
        raise UserError(f"The list of {what} is empty; give at least one.")
    return values


def load_images(images, size, first=0, broken=None):
    """Reads and resizes images as evaluation does; decoding runs in threads.

    Args:
      images: see `raw_image`. size: side of the result, pixels.
      first: the number of the first image, for messages.
      broken: a dict that takes number -> reason of every image that cannot be read, whose pixels
        are then zero; None: the first such image is an error.

    Returns:
      uint8 `[n, size, size, 3]`.

    Raises:
      UserError: naming the image that cannot be read.
    """
    values = [functools.partial(raw_image, image) for image in images]
    with ThreadPoolExecutor() as pool:
        pixels, problems = PillowEngine(size).load(values, [WHOLE] * len(values), pool.map)
    for row, problem in enumerate(problems):
        if problem is None:
            continue
        if broken is None:
            raise UserError(f"The image {name_of(images[row], first + row)} cannot be read "
                            f"({problem}); give a complete picture in a format that Pillow knows.")
        broken[first + row] = problem
    return pixels


def raw_image(image):
    """An image as data sources give them: an encoded file, or pixels uint8 `[h, w, 3]`.

    Args:
      image: a path, an encoded file as bytes, a PIL image, pixels uint8 `[h, w]` or `[h, w, 3]`,
        or a `StoredImage`.

    Raises:
      OSError, BrokenImage: it cannot be read.
      UserError: it is none of these.
    """
    if isinstance(image, Image.Image):
        return np.asarray(decode(image))
    if isinstance(image, StoredImage):
        return image.source.get(image.index, "image")
    if isinstance(image, (str, os.PathLike)):
        return read_bytes(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(f"An image array is {image.dtype}{list(image.shape)}; give uint8 "
                            "pixels of shape [height, width, 3].")
    elif not isinstance(image, bytes):
        raise UserError(f"An image is a {type(image).__name__}; give a path, bytes, a PIL image "
                        "or uint8 pixels.")
    return image


def as_value(field, value):
    """What people give for a field -> a function that reads its raw value.

    Of an image any form, of several of them a list; of a text a str.
    """
    if isinstance(field, ImageField):
        if isinstance(value, (list, tuple)):
            return lambda: [raw_image(image) for image in value]
        return functools.partial(raw_image, value)
    if isinstance(field, TextField) and isinstance(value, str):
        return lambda: [value]
    return lambda: value


def name_of(image, number):
    """The file or the name in its source of an image, else its number."""
    if isinstance(image, StoredImage):
        return image.source.name(image.index)
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return str(number)


def blocks(count, batch_size):
    """Cuts `count` rows into slices that fill a batch, and one for the rest."""
    return [slice(start, min(start + batch_size, count))
            for start in range(0, count, batch_size)]


def pad(array, batch_size):
    """Repeats the last row so that few shapes are compiled: to 1, b, 2b, 4b, ... rows."""
    rows = 1 if len(array) == 1 else batch_size
    while rows < len(array):
        rows *= 2
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
