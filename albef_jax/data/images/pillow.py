"""Images for training and evaluation: random draws, geometry, and the Pillow engine.

Choices are drawn here from a generator of one example; both engines (this; `tf.py`) carry them out.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from albef_jax.data.images import randaugment
from albef_jax.data.sources.base import Value, reason

CROP_TRIES = 10
ORIENTATION = 0x0112  # EXIF's tag
MAX_PIXELS = 80_000_000  # of an image, by default
ASPECT_RATIO = (3 / 4, 4 / 3)
REDUCTIONS = (8, 4, 2)  # what a JPEG decoder can shrink by at no cost
REDUCING_GAP = 2.0  # shrink only while this much resolution is left over for the real resize


class BrokenImage(OSError):
    """The image cannot be read; the message is the reason, in a few words."""


class Draw(NamedTuple):
    """All random choices for one training image, independent of its size.

    areas, ratios: share of the image area and width / height of each crop try, [10]; [0] where the
        whole image is shown.
    corner: place of the crop in [0, 1), (y, x).
    exact: no shrinking while a JPEG is decoded.
    """

    areas: np.ndarray
    ratios: np.ndarray
    corner: tuple[float, float]
    flip: bool
    operations: tuple[randaugment.Operation, ...]
    exact: bool = False


WHOLE = Draw(np.array([]), np.array([]), (0.0, 0.0), False, (), exact=True)  # in evaluation


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """As Pillow takes it: left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def draw_train(rng: np.random.Generator, data_config) -> Draw:
    """Draws crop, flip and RandAugment operations as configured."""
    tries = CROP_TRIES if data_config.crop_scale else 0
    areas = rng.uniform(*(data_config.crop_scale or (1, 1)), tries)
    ratios = np.exp(rng.uniform(*np.log(ASPECT_RATIO), tries))
    corner_y, corner_x, flip = rng.random(3)
    count, magnitude = data_config.randaugment
    operations = randaugment.draw_operations(rng, count, magnitude)
    return Draw(areas, ratios, (corner_y, corner_x), bool(flip < data_config.flip), operations)


def crop_box(draw: Draw, height: int, width: int) -> Box:
    """The crop of torchvision's RandomResizedCrop: the first try that fits, else the centre.

    The whole image, in whatever shape, for a draw without tries.
    """
    if not len(draw.areas):
        return Box(0, 0, height, width)
    for area, ratio in zip(draw.areas, draw.ratios):
        w = round(float(np.sqrt(height * width * area * ratio)))
        h = round(float(np.sqrt(height * width * area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            top = int(draw.corner[0] * (height - h + 1))
            return Box(top, int(draw.corner[1] * (width - w + 1)), h, w)
    narrow, wide = ASPECT_RATIO
    w = max(1, min(width, round(height * wide)))
    h = max(1, min(height, round(width / narrow)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def reduction(box: Box, size: int) -> int:
    """How much a JPEG may be shrunk while decoding without a visible change after the resize."""
    largest = min(box.height, box.width) / (size * REDUCING_GAP)
    return next((factor for factor in REDUCTIONS if factor <= largest), 1)


def reduce_box(box: Box, factor: int, height: int, width: int) -> Box:
    """The same rectangle on an image [height, width] that was decoded `factor` times smaller."""
    top, left = round(box.top / factor), round(box.left / factor)
    return Box(top, left, min(round(box.height / factor), -(-height // factor) - top),
               min(round(box.width / factor), -(-width // factor) - left))


def open_image(data: bytes | np.ndarray, max_pixels: int = MAX_PIXELS,
               exif: bool = False) -> Image.Image:
    """Reads the header of an encoded image, or wraps pixels uint8 [h, w, 3]; raises BrokenImage.

    Args:
        data: the image. max_pixels: more are an error; a tiny file may have them.
        exif: turn it as its EXIF orientation says, which decodes it.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data)
    if not data:
        raise BrokenImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise BrokenImage("too many pixels") from None
    except Exception:  # decoders raise anything on damaged headers
        raise BrokenImage("not an image") from None
    if image.width * image.height > max_pixels:
        raise BrokenImage(f"{image.width} x {image.height} pixels, more than {max_pixels:,}")
    return turned(image) if exif and is_turned(image) else image


def is_turned(image: Image.Image) -> bool:
    """Whether an opened image is to be shown turned or mirrored, by its EXIF orientation."""
    try:
        return image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # damaged metadata; the picture may be whole
        return False


def turned(image: Image.Image) -> Image.Image:
    """An opened image as its EXIF orientation says; raises BrokenImage."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise anything on damaged data
        raise BrokenImage(str(error) or type(error).__name__) from None


def is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG in colour or grey, which every decoder reads alike."""
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def decode(image: Image.Image) -> Image.Image:
    """Decodes an opened image to RGB; raises BrokenImage.

    Transparency is dropped, and 16 bits become 8. Of floating-point pixels nobody says the range.
    """
    if image.mode == "F":
        raise BrokenImage("pixels of floating point; save it with 8 or 16 bits")
    try:
        if image.mode.startswith("I"):
            wide = np.clip(np.asarray(image), 0, 2**16 - 1).astype(np.float32)
            image = Image.fromarray((wide / 257 + 0.5).astype(np.uint8))
        return image.convert("RGB")
    except Exception as error:  # decoders raise anything on damaged data
        raise BrokenImage(str(error) or type(error).__name__) from None


def cut(picture: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    """The part left, top, right, bottom of a picture, uint8 [h, w, 3]; raises OSError."""
    left, top, right, bottom = box
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise OSError(f"{box} is not inside its {picture.width} x {picture.height} pixels")
    return np.asarray(picture.crop(box))


def load_image(data: bytes | np.ndarray, draw: Draw, size: int,
               opened: Callable[..., Image.Image] = open_image) -> np.ndarray:
    """One image as drawn, uint8 [size, size, 3]; raises BrokenImage if it cannot be decoded.

    `opened`: `open_image` with its options.
    """
    image = opened(data)
    width, height = image.size
    box = crop_box(draw, height, width)
    factor = reduction(box, size) if is_plain_jpeg(image) and not draw.exact else 1
    if factor > 1:
        image.draft(None, (width // factor, height // factor))
        box = reduce_box(box, factor, height, width)
    image = decode(image).crop(box.corners).resize((size, size), Image.Resampling.BICUBIC)
    if draw.flip:
        image = ImageOps.mirror(image)
    for name, value in draw.operations:
        image = randaugment.apply_operation(image, name, value)
    return np.asarray(image)


def read(value: Value) -> bytes | np.ndarray:
    """An image as stored; raises BrokenImage if it is missing or cannot be read."""
    try:
        return value()
    except OSError as error:
        raise BrokenImage(reason(error)) from None


class PillowEngine:
    """Loads images with Pillow; runs wherever Python runs.

    Args:
        size: side of the images. opened: `open_image` with its options.
    """

    def __init__(self, size: int, opened: Callable[..., Image.Image] = open_image):
        self.size, self._opened = size, opened

    def load(self, values: Sequence[Value], draws: Sequence[Draw],
             parallel_map: Callable[..., Iterable] = map) -> tuple[np.ndarray, list[str | None]]:
        """Images uint8 [b, size, size, 3], zero where broken; and per image None or what is wrong.

        Args:
            values: b functions that read them. draws: the random choices of each.
            parallel_map: `map`, or the ordered map of a thread pool (Pillow drops the GIL).
        """
        images = np.zeros((len(values), self.size, self.size, 3), np.uint8)

        def load_row(row: int, value: Value, draw: Draw) -> str | None:
            try:
                images[row] = load_image(read(value), draw, self.size, self._opened)
            except BrokenImage as error:
                return str(error)
            return None

        return images, list(parallel_map(load_row, range(len(values)), values, draws))
