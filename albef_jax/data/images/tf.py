"""The tf.data engine: the same pictures as `pillow.py`, made by TensorFlow's C++ threads.

One graph call does a whole batch, with a parallel tf.data map inside. Decoding and resizing, where
every image has another shape, are TensorFlow operations; what follows has one shape and is
compiled by XLA, which makes one loop of the many passes over the pixels.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes are not for our console
import tensorflow as tf  # noqa: E402

from albef_jax.data.images import randaugment
from albef_jax.data.images.pillow import (
    BrokenImage, Draw, crop_box, decode, is_plain_jpeg, open_image, read, reduce_box,
    reduction)
from albef_jax.data.sources.base import Value

# What a reader thread hands to the graph for one image; `k` operations.
_SIGNATURE = {
    "row": ((), np.int32),
    "contents": ((), object),  # a JPEG file, or the raw RGB pixels of the box
    "form": ((), np.int32),  # index into _FORMS
    "box": ((4,), np.int32),  # top, left, height, width after the reduction
    "flip": ((), np.bool_),
    "operations": (("k",), np.int32),  # index into _OPERATIONS
    "arguments": (("k", 6), np.float64),  # a factor, or an affine map
}
_FORMS = (1, 2, 4, 8, "raw")  # by what a JPEG is reduced while it is decoded
_OPERATIONS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "Affine")
_END_OF_JPEG = b"\xff\xd9"
_TAIL = 64  # bytes; cameras and editors append a few zeros


class TfEngine:
    """Loads images with tf.data on at most `workers` threads, and never on a GPU.

    Args:
        size: side of the images. workers: threads for decoding. opened: `open_image` with its
            options.

    Attributes:
        stages: what the graph does with the item of an image, see `prepare`: name -> a function
            from an item, with the `image` of the stage before, to the next image.
    """

    def __init__(self, size: int, workers: int, opened: Callable = open_image):
        _keep_to_cpu(workers)
        self.size, self._workers, self._opened = size, workers, opened
        with _own_xla_flags():
            finish, self._operations = _compile(size)
        self.stages = {
            "decode, crop": _decode,
            "resize": lambda item: _resize(item["image"], item["box"], size),
            "round, flip": lambda item: finish(item["image"], item["flip"]),
            "RandAugment": self._augment,
        }
        self._load_batch = functools.cache(self._make_load_batch)  # by number of operations

    def load(self, values: Sequence[Value], draws: Sequence[Draw],
             parallel_map: Callable[..., Iterable] = map) -> tuple[np.ndarray, list[str | None]]:
        """Loads some images; as `pillow.PillowEngine.load`."""

        def item_of(row: int, value: Value, draw: Draw) -> dict | str:
            try:
                return prepare(row, read(value), draw, self.size, self._opened)
            except BrokenImage as error:
                return str(error)

        prepared = list(parallel_map(item_of, range(len(values)), values, draws))
        problems = [item if isinstance(item, str) else None for item in prepared]
        items = [item for item in prepared if not isinstance(item, str)]
        if not items:
            return np.zeros((len(values), self.size, self.size, 3), np.uint8), problems
        columns = columns_of(items)
        load_batch = self._load_batch(columns["operations"].shape[1])
        rows, loaded = (tensor.numpy()[1:] for tensor in load_batch(columns))  # without the blank
        if len(rows) == len(values):
            return loaded, problems
        images = np.zeros((len(values), self.size, self.size, 3), np.uint8)
        images[rows] = loaded
        for row in set(columns["row"].tolist()) - set(rows.tolist()):
            problems[row] = "damaged or cut short"
        return images, problems

    def _make_load_batch(self, operations: int) -> Callable:
        """The graph of a batch whose images get this number of operations."""
        signature = {name: tf.TensorSpec([None, *(operations if side == "k" else side
                                                  for side in shape)],
                                         tf.string if kind is object else kind)
                     for name, (shape, kind) in _SIGNATURE.items()}
        return tf.function(self._load_rows, input_signature=[signature])

    def _load_rows(self, columns: dict) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows int32 [1 + n] and images uint8 [1 + n, size, size, 3] of the n good ones.

        An image that cannot be decoded drops out. The first entry is blank, so that there always
        is something to return.
        """
        blank = tf.data.Dataset.from_tensors((-1, tf.zeros((self.size, self.size, 3), tf.uint8)))
        good = tf.data.Dataset.from_tensor_slices(columns).map(
            self._load_row, num_parallel_calls=self._workers).ignore_errors()
        length = tf.shape(columns["row"], out_type=tf.int64)[0] + 1
        return blank.concatenate(good).batch(length).get_single_element()

    def run(self, item: dict, stages: int | None = None) -> dict:
        """An item with its `image` after the first so many stages; None: after all."""
        for stage in list(self.stages.values())[:stages]:
            item = item | {"image": stage(item)}
        return item

    def _load_row(self, item: dict) -> tuple[tf.Tensor, tf.Tensor]:
        return item["row"], tf.ensure_shape(self.run(item)["image"], (self.size, self.size, 3))

    def _augment(self, item: dict) -> tf.Tensor:
        image = item["image"]
        for i in range(item["operations"].shape[0]):
            apply = [functools.partial(operation, image, item["arguments"][i])
                     for operation in self._operations]
            image = tf.switch_case(item["operations"][i], apply)
        return image


def _keep_to_cpu(workers: int) -> None:
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_inter_op_parallelism_threads(workers + 2)
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        pass  # TensorFlow already runs in this process: its settings stay


@contextlib.contextmanager
def _own_xla_flags() -> Iterator[None]:
    """Hides XLA_FLAGS, which are JAX's: TensorFlow ends the process over one it does not know.

    It reads them once, at its first compilation.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _compile(size: int) -> tuple[Callable, list[Callable]]:
    """`_finish` and the operations, in order of `_OPERATIONS`, for images of one size."""
    def compiled(function, *signature):
        function = tf.function(function, input_signature=signature, jit_compile=True)
        function(*(tf.zeros(spec.shape, spec.dtype) for spec in signature))  # compiles it now
        return function

    image = tf.TensorSpec((size, size, 3), tf.uint8)
    arguments = tf.TensorSpec((6,), tf.float64)
    resized = tf.TensorSpec((size, size, 3), tf.float32)
    finish = compiled(_finish, resized, tf.TensorSpec((), tf.bool))
    changes = (_autocontrast, _equalize, _brightness, _sharpness, _warp)
    return finish, [lambda image, arguments: image,
                    *(compiled(change, image, arguments) for change in changes)]


def columns_of(items: list[dict]) -> dict[str, np.ndarray]:
    """What the graph takes for some images: their items, as arrays by name."""
    return {name: np.array([item[name] for item in items], kind)
            for name, (_, kind) in _SIGNATURE.items()}


def prepare(row: int, data: bytes | np.ndarray, draw: Draw, size: int,
            opened: Callable = open_image) -> dict:
    """The item of an image, which `_SIGNATURE` describes.

    Everything but plain JPEG is decoded here, by Pillow; raises BrokenImage.
    """
    image = opened(data)
    width, height = image.size
    is_jpeg = is_plain_jpeg(image) and _is_whole(data)
    box = crop_box(draw, height, width)
    factor = reduction(box, size) if is_jpeg and not draw.exact else 1
    operations = [_operation(*operation, size) for operation in draw.operations]
    return {
        "row": row,
        "contents": data if is_jpeg else decode(image).crop(box.corners).tobytes(),
        "form": _FORMS.index(factor if is_jpeg else "raw"),
        "box": box if factor == 1 else reduce_box(box, factor, height, width),
        "flip": draw.flip,
        "operations": np.array([kind for kind, _ in operations], np.int32),
        "arguments": np.array([a for _, a in operations], np.float64).reshape(-1, 6),
    }


def _is_whole(jpeg: bytes) -> bool:
    """Whether a file ends as it should; others go to Pillow, which says what is wrong.

    TensorFlow decodes no further than the lower edge of the box and would not notice.
    """
    return jpeg[-_TAIL:].rstrip(b"\0\r\n ").endswith(_END_OF_JPEG)


def _operation(name: str, value: float, size: int) -> tuple[int, tuple[float, ...]]:
    coefficients = randaugment.affine(name, value, size, size)
    if coefficients is not None:
        return _OPERATIONS.index("Affine"), coefficients
    return _OPERATIONS.index(name), (value,) + (0.0,) * 5


def _decode(item: dict) -> tf.Tensor:
    forms = [functools.partial(_pixels, item["contents"], item["box"], form) for form in _FORMS]
    return tf.switch_case(item["form"], forms)


def _pixels(contents: tf.Tensor, box: tf.Tensor, form: int | str) -> tf.Tensor:
    """The box of an image, uint8 [h, w, 3]."""
    if form == "raw":
        return tf.reshape(tf.io.decode_raw(contents, tf.uint8), [box[2], box[3], 3])
    return tf.io.decode_and_crop_jpeg(contents, box, channels=3, ratio=form,
                                      dct_method="INTEGER_ACCURATE")


def _resize(pixels: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes uint8 [h, w, 3] to float32 [size (x), size (y), 3], which is transposed.

    The same values as `tf.image.resize(..., "bicubic", antialias=True)`, which sums up the pixels
    of a row three channels at a time; here whole rows, then whole columns are summed up.
    """
    rows = _resize_rows(tf.reshape(pixels, [box[2], box[3] * 3]), size)
    columns = tf.transpose(tf.reshape(rows, [size, box[3], 3]), [1, 0, 2])
    return tf.reshape(_resize_rows(tf.reshape(columns, [box[3], size * 3]), size), [size, size, 3])


def _resize_rows(image: tf.Tensor, size: int) -> tf.Tensor:
    """[h, n] to float32 [size, n]; the n values of a row count as the channels of one pixel."""
    height, channels = tf.unstack(tf.shape(image))
    return tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, [1, height, 1, channels]), size=[size, 1],
        scale=tf.stack([size / tf.cast(height, tf.float32), 1.0]), translation=[0.0, 0.0],
        kernel_type="keyscubic", antialias=True)[0, :, 0]


def _finish(image: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """What `_resize` returns, as uint8 [size (y), size (x), 3], mirrored or not."""
    image = _round(tf.transpose(image, [1, 0, 2]))
    return tf.where(flip, tf.reverse(image, [1]), image)


def _truncate(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)


def _round(values: tf.Tensor) -> tf.Tensor:
    return _truncate(tf.round(values))


def _rows(image: tf.Tensor) -> tf.Tensor:
    """[h, w, 3] as [h, 3 w]: long rows are quicker than many pixels of three numbers."""
    return tf.reshape(image, [image.shape[0], -1])


def _autocontrast(image: tf.Tensor, unused: tf.Tensor) -> tf.Tensor:
    """As `randaugment.autocontrast_table`, also where that differs from a plain stretch."""
    height, width, _ = image.shape
    rows = _rows(image)

    def of_channels(reduce):
        return tf.cast(reduce(tf.reshape(reduce(rows, 0), [width, 3]), 0), tf.float64)

    low, high = of_channels(tf.reduce_min), of_channels(tf.reduce_max)
    offset, scale, varies = (tf.tile(of_channel, [width]) for of_channel in (
        tf.math.floormod(-low, 256), 255 / (high - low), high > low))
    stretched = _truncate((tf.cast(rows, tf.float64) + offset) * scale)
    return tf.reshape(tf.where(varies, stretched, rows), image.shape)


def _equalize(image: tf.Tensor, unused: tf.Tensor) -> tf.Tensor:
    """As Pillow's ImageOps.equalize."""
    levels = tf.range(256)
    values = tf.reshape(tf.cast(image, tf.int32), [-1, 3])
    places = tf.reshape(values + 256 * tf.range(3), [-1])  # in the three tables, end to end
    counts = tf.raw_ops.DenseBincount(input=places, size=3 * 256, weights=np.array([], np.int32))
    counts = tf.reshape(counts, [3, 256])
    highest = tf.reduce_max(values, 0)[:, None]
    last = tf.reduce_sum(tf.where(levels == highest, counts, 0), 1, keepdims=True)
    step = (tf.shape(values)[0] - last) // 255
    table = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    table = tf.where(step > 0, table, levels)
    return tf.reshape(_truncate(tf.gather(tf.reshape(table, [-1]), places)), image.shape)


def _brightness(image: tf.Tensor, arguments: tf.Tensor) -> tf.Tensor:
    return _truncate(tf.cast(image, tf.float64) * arguments[0])


def _sharpness(image: tf.Tensor, arguments: tf.Tensor) -> tf.Tensor:
    height, width, _ = image.shape
    rows = _rows(image)
    pixels = tf.cast(rows, tf.int32)
    framed = tf.pad(pixels, [[1, 1], [3, 3]])
    of_columns = framed[:-2] + framed[1:-1] + framed[2:]
    sums = of_columns[:, :-6] + of_columns[:, 3:-3] + of_columns[:, 6:] + 4 * pixels
    smooth = tf.floor(tf.cast(sums, tf.float32) / 13 + 0.5)
    factor = tf.cast(arguments[0], tf.float32)
    sharp = _truncate(smooth + factor * (tf.cast(pixels, tf.float32) - smooth))
    y, x = tf.range(height)[:, None], tf.range(3 * width)
    inside = (y > 0) & (y < height - 1) & (x >= 3) & (x < 3 * width - 3)
    return tf.reshape(tf.where(inside, sharp, rows), image.shape)


def _warp(image: tf.Tensor, arguments: tf.Tensor) -> tf.Tensor:
    """Bilinear warp that fades into the fill colour at the border, which is two pixels wide."""
    height, width, _ = image.shape
    a, b, c, d, e, f = tf.unstack(tf.cast(arguments, tf.float32))
    y, x = (tf.range(side, dtype=tf.float32) for side in (height, width))
    x, y = a * x + b * y[:, None] + c, d * x + e * y[:, None] + f
    x, y = tf.clip_by_value(x, -2.0, width), tf.clip_by_value(y, -2.0, height)
    left, top = tf.floor(x), tf.floor(y)
    x, y = (x - left)[..., None], (y - top)[..., None]
    framed = tf.pad(image, [[2, 2], [2, 2], [0, 0]], constant_values=randaugment.FILL)
    stride = width + 4
    first = (tf.cast(top, tf.int32) + 2) * stride + tf.cast(left, tf.int32) + 2

    def corner(offset: int) -> tf.Tensor:
        return tf.cast(tf.gather(tf.reshape(framed, [-1, 3]), first + offset), tf.float32)

    upper = (1 - x) * corner(0) + x * corner(1)
    lower = (1 - x) * corner(stride) + x * corner(stride + 1)
    return _round((1 - y) * upper + y * lower)
