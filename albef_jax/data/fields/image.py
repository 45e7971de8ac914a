"""Images as uint8 pixels; the only field that knows engines and augmentation."""

import functools
import importlib.util
from collections.abc import Sequence

import jax
import numpy as np

from albef_jax.data.fields.base import Field
from albef_jax.data.images.pillow import MAX_PIXELS, WHOLE, PillowEngine, draw_train, open_image
from albef_jax.data.prefetch import num_workers
from albef_jax.data.sources.base import of_views
from albef_jax.errors import UserError


class ImageField(Field):
    """Array `image` uint8 `[s, s, 3]`; with several views of an example `[v, s, s, 3]`.

    The raw value is an encoded file or pixels uint8 `[h, w, 3]`; of several views a list of them.

    Args:
        data: the `data` block of a config. size: s, side in pixels. views: images of an example.
    """

    defaults = dict(
        engine="auto",  # 'tf' or 'pillow'; 'auto': tf if TensorFlow is installed
        crop_scale=(0.2, 1.0), flip=0.5, randaugment=(2, 7),
        max_pixels=MAX_PIXELS,  # of an image; what has more counts as broken
        exif=False,  # turn images as their EXIF orientation says; the public code does not
        blind=False)  # black images: what the rest alone gives away
    limits = dict(max_pixels=(1, None), flip=(0.0, 1.0), crop_scale=(0.0, 1.0), randaugment=(0, 10))
    light = False

    def __init__(self, data, size: int, views: int = 1):
        self._data, self._size, self._views = data, size, views
        self._engine = None

    def check(self):
        """Engine and augmentation; see `Field.check`."""
        check_engine(self._data.engine)
        scale, randaugment = self._data.crop_scale, self._data.randaugment
        if len(scale) and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
            raise UserError(f"data.crop_scale is {scale}; give the least and the largest share of "
                            "the image to keep, such as (0.2, 1.0), or () for whole images.")
        if len(randaugment) != 2:
            raise UserError(f"data.randaugment is {randaugment}; give the number of operations "
                            "and the magnitude, such as (2, 7).")

    def check_facts(self, facts, where):
        """The source must have as many images per example (fact `views`)."""
        if (views := facts.get("views", 1)) != self._views:
            raise UserError(f"The task looks at {self._views} image(s) per example, but {where} "
                            f"has {views}; give it a source that is made for the task.")

    def open(self, facts, tokenizer):
        if not self._data.blind:
            self._engine = make_engine(self._data, self._size)

    def spec(self):
        views = (self._views,) if self._views > 1 else ()
        return {"image": jax.ShapeDtypeStruct((*views, self._size, self._size, 3), np.uint8)}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`."""
        shape = len(values), *self.spec()["image"].shape
        if self._data.blind:
            return {"image": np.zeros(shape, np.uint8)}, [None] * len(values)
        draws = [draw_train(rng, self._data) if train else WHOLE
                 for rng in rngs for _ in range(self._views)]
        readers = [reader for value in values for reader in of_views(value, self._views)]
        images, problems = self._engine.load(readers, draws, parallel_map)
        of_examples = np.array(problems, object).reshape(-1, self._views)
        return {"image": images.reshape(shape)}, [first_problem(each) for each in of_examples]

    def noise(self, rng, n):
        one = self.spec()["image"]
        return {"image": rng.integers(0, 256, (n, *one.shape), one.dtype)}


def first_problem(problems: Sequence[str | None]) -> str | None:
    """What is wrong with an example, from what is wrong with each of its images."""
    wrong = [(number, why) for number, why in enumerate(problems, 1) if why]
    if not wrong:
        return None
    number, why = wrong[0]
    return why if len(wrong) == len(problems) else f"image {number}: {why}"


def check_engine(name: str) -> None:
    """Raises a UserError where `data.engine` is no name of an engine."""
    if name not in ("auto", "tf", "pillow"):
        raise UserError(f"data.engine={name!r} is unknown; use 'auto', 'tf' or 'pillow'.")


def engine_name(name: str) -> str:
    """The engine that `data.engine` means on this machine.

    Raises:
        UserError: it is unknown, or TensorFlow is asked for and absent.
    """
    check_engine(name)
    has_tf = importlib.util.find_spec("tensorflow") is not None
    if name == "auto":
        return "tf" if has_tf else "pillow"
    if name == "tf" and not has_tf:
        raise UserError("data.engine='tf' needs TensorFlow; install it or use 'pillow'.")
    return name


def make_engine(data, size: int):
    """The image engine of a config's `data` block; see `engine_name`."""
    opened = functools.partial(open_image, max_pixels=data.max_pixels, exif=data.exif)
    if engine_name(data.engine) == "pillow":
        return PillowEngine(size, opened)
    from albef_jax.data.images.tf import TfEngine  # TensorFlow is slow to import, and optional

    return TfEngine(size, num_workers(data), opened)
