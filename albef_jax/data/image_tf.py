"""The tf.data engine: the same pictures as `image.py`, made by TensorFlow's C++ threads.

Only `pipeline.make_engine` imports this file. One graph call does a whole batch, with a parallel
tf.data map inside; all random choices and rectangles come ready-made from numpy.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes are not for our console
import tensorflow as tf  # noqa: E402

from albef_jax.data import randaugment
from albef_jax.data.image import (
    Box,
    BrokenImage,
    Draw,
    crop_box,
    decode,
    is_plain_jpeg,
    open_image,
    read,
    reduce_box,
    reduction,
)
from albef_jax.data.sources.base import Source

# What a reader thread hands to the graph for one image.
_SIGNATURE = {
    "row": ((), np.int32),
    "contents": ((), object),  # a JPEG file, or raw RGB pixels
    "is_jpeg": ((), np.bool_),
    "shape": ((2,), np.int32),  # height and width of raw pixels
    "reduction": ((), np.int32),  # index into _REDUCTIONS
    "box": ((4,), np.int32),  # top, left, height, width after the reduction
    "flip": ((), np.bool_),
    "operations": ((None,), np.int32),  # index into _OPERATIONS
    "arguments": ((None, 8), np.float64),  # a factor, or an affine map (row-major, 3x3 without 1)
}
_REDUCTIONS = (1, 2, 4, 8)
_OPERATIONS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness", "Affine")


class TfEngine:
    """Loads images with tf.data on at most `workers` threads, and never on a GPU.

    Args:
        size: side of the images.
        workers: threads for decoding.
    """

    name = "tf"

    def __init__(self, size: int, workers: int):
        _keep_to_cpu(workers)
        self.size = size
        signature = {
            name: tf.TensorSpec([None, *shape], tf.string if kind is object else kind)
            for name, (shape, kind) in _SIGNATURE.items()
        }
        self._load_batch = tf.function(
            functools.partial(_load_batch, size=size, workers=workers),
            input_signature=[signature],
        )

    def load(
        self,
        source: Source,
        indices: Sequence[int],
        draws: Sequence[Draw | None],
        parallel_map: Callable[..., Iterable] = map,
    ) -> tuple[np.ndarray, list[str | None]]:
        """Loads the images of some examples; as `image.PillowEngine.load`."""

        def prepare(row: int, index: int, draw: Draw | None) -> dict | str:
            try:
                return _prepare(row, read(source, index), draw, self.size)
            except BrokenImage as error:
                return str(error)

        prepared = list(parallel_map(prepare, range(len(indices)), indices, draws))
        problems = [item if isinstance(item, str) else None for item in prepared]
        items = [item for item in prepared if not isinstance(item, str)]
        images = np.zeros((len(indices), self.size, self.size, 3), np.uint8)
        if items:
            columns = {
                name: np.array([item[name] for item in items], kind)
                for name, (_, kind) in _SIGNATURE.items()
            }
            rows, loaded = (tensor.numpy() for tensor in self._load_batch(columns))
            rows, loaded = rows[1:], loaded[1:]  # without the blank
            images[rows] = loaded
            for row in set(columns["row"].tolist()) - set(rows.tolist()):
                problems[row] = "damaged or cut short"
        return images, problems


def _keep_to_cpu(workers: int) -> None:
    try:
        tf.config.set_visible_devices([], "GPU")
        tf.config.threading.set_inter_op_parallelism_threads(workers + 2)
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError:
        pass  # TensorFlow already runs in this process: its settings stay


def _prepare(row: int, data: bytes | np.ndarray, draw: Draw | None, size: int) -> dict:
    """What `_SIGNATURE` lists. Everything but plain JPEG is decoded here, by Pillow."""
    image = open_image(data)
    width, height = image.size
    is_jpeg = is_plain_jpeg(image)
    box = Box(0, 0, height, width) if draw is None else crop_box(draw, height, width)
    factor = reduction(box, size) if is_jpeg and draw is not None else 1
    operations = () if draw is None else draw.operations
    kinds, arguments = zip(*(_operation(*o, size) for o in operations)) if operations else ((), ())
    return {
        "row": row,
        "contents": data if is_jpeg else decode(image).tobytes(),
        "is_jpeg": is_jpeg,
        "shape": (height, width),
        "reduction": _REDUCTIONS.index(factor),
        "box": box if factor == 1 else reduce_box(box, factor, height, width),
        "flip": draw is not None and draw.flip,
        "operations": np.array(kinds, np.int32),
        "arguments": np.array(arguments, np.float64).reshape(-1, 8),
    }


def _operation(name: str, value: float, size: int) -> tuple[int, tuple[float, ...]]:
    coefficients = randaugment.affine(name, value, size, size)
    if coefficients is not None:
        return _OPERATIONS.index("Affine"), (*coefficients, 0.0, 0.0)
    return _OPERATIONS.index(name), (value,) + (0.0,) * 7


def _load_batch(columns: dict, size: int, workers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows int32 [1 + n] and images uint8 [1 + n, size, size, 3] of the n good ones.

    An image that cannot be decoded drops out. The first entry is blank, so that there always is
    something to return.
    """
    blank = tf.data.Dataset.from_tensors((-1, tf.zeros((size, size, 3), tf.uint8)))
    good = (
        tf.data.Dataset.from_tensor_slices(columns)
        .map(functools.partial(_load, size=size), num_parallel_calls=workers)
        .ignore_errors()
    )
    length = tf.shape(columns["row"], out_type=tf.int64)[0] + 1
    return blank.concatenate(good).batch(length).get_single_element()


def _load(item: dict, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    top, left, height, width = tf.unstack(item["box"])
    pixels = tf.cond(
        item["is_jpeg"],
        lambda: _decode_jpeg(item["contents"], item["reduction"]),
        lambda: tf.reshape(
            tf.io.decode_raw(item["contents"], tf.uint8), tf.concat([item["shape"], [3]], 0)
        ),
    )
    pixels = pixels[top : top + height, left : left + width]
    image = _round(tf.image.resize(pixels, (size, size), "bicubic", antialias=True))
    image = tf.cond(item["flip"], lambda: tf.reverse(image, [1]), lambda: image)
    for i in tf.range(tf.shape(item["operations"])[0]):  # AutoGraph makes this a while_loop
        image = _apply_operation(image, item["operations"][i], item["arguments"][i])
    return item["row"], tf.ensure_shape(image, (size, size, 3))


def _decode_jpeg(contents: tf.Tensor, reduction_index: tf.Tensor) -> tf.Tensor:
    def branch(ratio: int):
        return lambda: tf.io.decode_jpeg(
            contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
        )

    return tf.switch_case(reduction_index, [branch(ratio) for ratio in _REDUCTIONS])


def _apply_operation(image: tf.Tensor, kind: tf.Tensor, argument: tf.Tensor) -> tf.Tensor:
    branches = {
        "Identity": lambda: image,
        "AutoContrast": lambda: _map_channels(_autocontrast, image),
        "Equalize": lambda: _map_channels(_equalize, image),
        "Brightness": lambda: _truncate(tf.cast(image, tf.float64) * argument[0]),
        "Sharpness": lambda: _sharpness(image, argument[0]),
        "Affine": lambda: _warp(image, argument),
    }
    return tf.switch_case(kind, [branches[name] for name in _OPERATIONS])


def _truncate(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)


def _round(values: tf.Tensor) -> tf.Tensor:
    return _truncate(tf.round(values))


def _map_channels(function, image: tf.Tensor) -> tf.Tensor:
    return tf.stack([function(channel) for channel in tf.unstack(image, axis=-1)], axis=-1)


def _autocontrast(channel: tf.Tensor) -> tf.Tensor:
    """As `randaugment.autocontrast_table`, also where that differs from a plain stretch."""
    values = tf.cast(channel, tf.float64)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    stretched = (values + tf.math.floormod(-low, 256)) * (255 / (high - low))
    return tf.where(high > low, _truncate(stretched), channel)


def _equalize(channel: tf.Tensor) -> tf.Tensor:
    """As Pillow's ImageOps.equalize."""
    flat = tf.reshape(tf.cast(channel, tf.int32), [-1])
    histogram = tf.math.bincount(flat, minlength=256, maxlength=256)
    last = histogram[tf.reduce_max(flat)]
    step = (tf.size(flat) - last) // 255
    table = (step // 2 + tf.cumsum(histogram, exclusive=True)) // tf.maximum(step, 1)
    return tf.where(step > 0, _truncate(tf.gather(table, tf.cast(channel, tf.int32))), channel)


def _sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    pixels = tf.cast(image, tf.float32)
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    kernel = np.tile((kernel / 13)[:, :, None, None], (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(pixels[None], kernel, (1, 1, 1, 1), "VALID")[0]
    inner = pixels[1:-1, 1:-1]
    smooth = tf.floor(smooth + 0.5)
    sharp = _truncate(smooth + tf.cast(factor, tf.float32) * (inner - smooth))
    middle = tf.concat([image[1:-1, :1], sharp, image[1:-1, -1:]], 1)  # borders stay
    return tf.concat([image[:1], middle, image[-1:]], 0)


def _warp(image: tf.Tensor, coefficients: tf.Tensor) -> tf.Tensor:
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=tf.cast(coefficients, tf.float32)[None],
        output_shape=tf.shape(image)[:2],
        fill_value=float(randaugment.FILL),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return _round(warped[0])
