"""What is evaluated: all images and texts of a source, or its examples row by row."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from albef_jax.data.images.pillow import decode, open_image, read
from albef_jax.data.pipeline import make_engine, num_workers, prefetch, view_rows
from albef_jax.data.sources.base import Source
from albef_jax.data.text import Tokenizer, clean
from albef_jax.errors import UserError


def encode_for_evaluation(texts, tokenizer: Tokenizer, data_config):
    """Ids and masks int32 [n, l] of cleaned texts, up to `data.eval_text_length`."""
    length = data_config.eval_text_length or data_config.text_length
    return tokenizer.encode(texts, length, data_config.sep)


def clean_for_evaluation(text: str, source: Source, data_config) -> str:
    """A text as evaluation reads it: up to `data.eval_max_words` words."""
    words = data_config.eval_max_words or data_config.max_words
    return clean(text, source.cleaning, words)


class EvalSet:
    """All images and all captions of a source, each image once.

    Args:
        source: the examples; those with the same `image_id` count as one image.
        tokenizer: captions to ids.
        data_config: the `data` block of the config.

    Attributes:
        texts: m cleaned captions, in order of the examples.
        text_ids, text_mask: int32 [m, l], the same as the model reads them.
        text_image: int32 [m], the image of each caption, as a row of the set.
        num_images: number of images n.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, data_config):
        self._source, self._config = source, data_config
        self._engine = make_engine(data_config)
        rows: dict[int, int] = {}  # image_id -> row
        self._examples: list[int] = []  # row -> the first example that shows it
        self._owners: list[tuple[int, int]] = []  # text -> its example, and its number there
        self.texts, text_image = [], []
        for example in range(len(source)):
            row = rows.setdefault(source.image_id(example), len(rows))
            if row == len(self._examples):
                self._examples.append(example)
            for number, caption in enumerate(source.captions(example)):
                self.texts.append(clean_for_evaluation(caption, source, data_config))
                self._owners.append((example, number))
                text_image.append(row)
        self.num_images = len(rows)
        self.text_image = np.array(text_image, np.int32)
        self.text_ids, self.text_mask = encode_for_evaluation(self.texts, tokenizer, data_config)

    def describes(self, text: int, row: int) -> bool:
        """Whether a text is true of the image of a row, see `Source.describes`."""
        return self._source.describes(*self._owners[text], self._examples[row])

    def picture(self, row: int) -> Image.Image:
        """The image of a row as a person looks at it: RGB, at its own size.

        Raises:
            BrokenImage: it cannot be read.
        """
        return decode(open_image(read(self._source, self._examples[row])))

    def images(self, batch_size: int) -> Iterator[dict]:
        """All images in order, resized for evaluation, the last batch padded.

        Yields:
            image uint8 [b, h, w, 3], _mask float32 [b] (0 = padding), index int32 [b] (row).

        Raises:
            UserError: an image cannot be read; a score over the rest would be another score.
        """
        starts = range(0, self.num_images, batch_size)
        make = functools.partial(self._batch, batch_size=batch_size)
        return prefetch(make, starts, num_workers(self._config))

    def _batch(self, start: int, parallel_map, batch_size: int) -> dict:
        index = np.arange(start, start + batch_size)
        real = index < self.num_images
        index = np.where(real, index, 0).astype(np.int32)
        examples = self._examples[start : start + batch_size]
        images = load_all(self._engine, self._source, examples, parallel_map)
        padding = [(0, batch_size - len(examples)), (0, 0), (0, 0), (0, 0)]
        return {"image": np.pad(images, padding), "_mask": real.astype(np.float32), "index": index}


class EvalRows:
    """The examples of a source one by one: an image or several, one text, and its task's fields.

    Args:
        source: the examples. tokenizer: texts to ids. data_config: the `data` block of the config.
        limit: only the first so many examples; 0: all.

    Attributes:
        source: the examples. texts: n cleaned texts, the first of each example.
        text_ids, text_mask: int32 [n, l], cut to the longest text.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, data_config, limit: int = 0):
        self.source, self._config = source, data_config
        self._engine = make_engine(data_config)
        self._rows = range(min(limit or len(source), len(source)))
        self.texts = [clean_for_evaluation(source.captions(row)[0], source, data_config)
                      for row in self._rows]
        ids_nl, mask_nl = encode_for_evaluation(self.texts, tokenizer, data_config)
        longest = int(mask_nl.sum(axis=1).max())
        self.text_ids, self.text_mask = ids_nl[:, :longest], mask_nl[:, :longest]

    def __len__(self) -> int:
        return len(self._rows)

    def some(self, examples: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A few examples: image uint8 [b, (v,) h, w, 3], text ids and mask int32 [b, l].

        Raises:
            UserError: an image cannot be read.
        """
        images = load_all(self._engine, self.source, examples, map)
        return images, self.text_ids[examples], self.text_mask[examples]

    def pictures(self, example: int) -> list[Image.Image]:
        """The images of an example as a person looks at them: RGB, at their own size.

        Raises:
            BrokenImage: one cannot be read.
        """
        images_of, rows = view_rows(self.source, [example])
        return [decode(open_image(read(images_of, row))) for row in rows]

    def batches(self, batch_size: int) -> Iterator[dict]:
        """All examples in order, the last batch padded with copies of its first example.

        Yields:
            image uint8 [b, (v,) h, w, 3], text_ids, text_mask int32 [b, l], _mask float32 [b]
            (0 = padding), index int32 [b] (the example).

        Raises:
            UserError: an image cannot be read; a score over the rest would be another score.
        """
        make = functools.partial(self._batch, batch_size=batch_size)
        return prefetch(make, range(0, len(self), batch_size), num_workers(self._config))

    def _batch(self, start: int, parallel_map, batch_size: int) -> dict:
        examples = list(self._rows[start : start + batch_size])
        images = load_all(self._engine, self.source, examples, parallel_map)
        row = np.arange(batch_size)
        row = np.where(row < len(examples), row, 0)
        index = (start + row).astype(np.int32)
        real = (np.arange(batch_size) < len(examples)).astype(np.float32)
        return {"image": images[row], "text_ids": self.text_ids[index],
                "text_mask": self.text_mask[index], "_mask": real, "index": index}


def load_all(engine, source: Source, examples: list[int], parallel_map) -> np.ndarray:
    """All images of some examples, uint8 [b, (v,) h, w, 3].

    Raises:
        UserError: one cannot be read; a score over the rest would be another score.
    """
    images_of, rows = view_rows(source, examples)
    images, problems = engine.load(images_of, rows, [None] * len(rows), parallel_map)
    for row, problem in zip(rows, problems):
        if problem:
            raise UserError(
                f"The evaluation image {images_of.name(row)} cannot be read ({problem}); mend it "
                "or remove it from the evaluation data."
            )
    if source.views > 1:
        images = images.reshape(len(examples), source.views, *images.shape[1:])
    return images
