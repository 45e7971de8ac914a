"""What is evaluated: the examples of a source row by row, or all its images and all its texts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from albef_jax.data.fields import open_fields
from albef_jax.data.fields.base import Field
from albef_jax.data.images.pillow import decode, open_image, read
from albef_jax.data.prefetch import num_workers, prefetch
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError

MASK, INDEX = "_mask", "index"  # of a batch: 0.0 for padding; the row


class EvalRows:
    """The examples of a source one by one, with some of its fields.

    Args:
        source: the examples. fields: field name -> field; they are opened here.
        tokenizer: of the run. data_config: the `data` block of the config.
        limit: only the first so many examples; 0: all.

    Attributes:
        source: the examples.
        light: the arrays `[n, ...]` of the fields that fit into memory, by name.
    """

    def __init__(self, source: Source, fields: Mapping[str, Field], tokenizer, data_config,
                 limit: int = 0):
        self.source = source
        self._fields = open_fields(fields, source, tokenizer, "The source of an evals block")
        self._workers = num_workers(data_config)
        self._count = min(limit or len(source), len(source))
        self.light = {}
        for name, field in self._fields.items():
            if field.light:
                self.light |= field.trimmed(self._load(name, range(self._count), map))

    def __len__(self) -> int:
        return self._count

    def some(self, examples: list[int], parallel_map=map) -> dict:
        """The arrays `[b, ...]` of some examples by name.

        Raises:
            UserError: one cannot be read; a score over the rest would be another score.
        """
        batch = {name: array[examples] for name, array in self.light.items()}
        for name, field in self._fields.items():
            if not field.light:
                batch |= self._load(name, examples, parallel_map)
        return batch

    def text(self, example: int) -> str:
        """The text of an example as the model reads it, cleaned."""
        return self._fields["text"].clean(self.source.get(example, "text")[0], train=False)

    def pictures(self, example: int) -> list[Image.Image]:
        """The images of an example as a person looks at them: RGB, at their own size.

        Raises:
            BrokenImage: one cannot be read.
        """
        raw = read(functools.partial(self.source.get, example, "image"))
        return [decode(open_image(one)) for one in (raw if isinstance(raw, list) else [raw])]

    def batches(self, batch_size: int) -> Iterator[dict]:
        """All examples in order, the last batch padded with copies of its first example.

        Yields:
            The arrays of the fields `[b, ...]` by name, _mask float32 [b] (0 = padding), index
            int32 [b] (the example).

        Raises:
            UserError: an example cannot be read; a score over the rest would be another score.
        """
        make = functools.partial(self._batch, batch_size=batch_size)
        return prefetch(make, range(0, len(self), batch_size), self._workers)

    def _batch(self, start: int, parallel_map, batch_size: int) -> dict:
        examples = list(range(start, min(start + batch_size, len(self))))
        batch = self.some(examples, parallel_map) | {INDEX: np.array(examples, np.int32)}
        return padded(batch, batch_size)

    def _load(self, name: str, examples, parallel_map) -> dict:
        values = [functools.partial(self.source.get, i, name) for i in examples]
        arrays, problems = self._fields[name].load(values, [None] * len(values), False,
                                                   parallel_map)
        for example, problem in zip(examples, problems):
            if problem:
                raise UserError(
                    f"The evaluation example {self.source.name(example)} cannot be read "
                    f"({problem}); mend it or remove it from the evaluation data."
                )
        return arrays


class EvalSet:
    """All images and all texts of a source, each image once.

    Args:
        source: the examples; those with the same `image_id` count as one image.
        fields: with 'text' and what the images are made of. tokenizer, data_config: as of
            `EvalRows`.

    Attributes:
        source: the examples.
        texts: m cleaned texts, in order of the examples.
        text_ids, text_mask: int32 [m, l], the same as the model reads them.
        text_image: int32 [m], the image of each text, as a row of the set.
        num_images: number of images n.
    """

    def __init__(self, source: Source, fields: Mapping[str, Field], tokenizer, data_config):
        self.source, text = source, fields["text"]
        open_fields({"text": text}, source, tokenizer, "The source of an evals block")
        rows: dict[int, int] = {}  # image_id -> row
        self._examples: list[int] = []  # row -> the first example that shows it
        self._owners: list[tuple[int, int]] = []  # text -> its example, and its number there
        self.texts, text_image = [], []
        for example in range(len(source)):
            row = rows.setdefault(source.get(example, "image_id"), len(rows))
            if row == len(self._examples):
                self._examples.append(example)
            for number, written in enumerate(source.get(example, "text")):
                self.texts.append(text.clean(written, train=False))
                self._owners.append((example, number))
                text_image.append(row)
        self.num_images = len(rows)
        self.text_image = np.array(text_image, np.int32)
        encoded = text.encode(self.texts, train=False)
        self.text_ids, self.text_mask = encoded["text_ids"], encoded["text_mask"]
        of_images = {name: field for name, field in fields.items()
                     if name not in ("text", "image_id")}
        self._images = EvalRows(source, of_images, tokenizer, data_config)
        self._workers = num_workers(data_config)

    def describes(self, text: int, row: int) -> bool:
        """Whether a text is true of the image of a row, see `Source.describes`."""
        return self.source.describes(*self._owners[text], self._examples[row])

    def picture(self, row: int) -> Image.Image:
        """The image of a row as a person looks at it: RGB, at its own size.

        Raises:
            BrokenImage: it cannot be read.
        """
        return self._images.pictures(self._examples[row])[0]

    def images(self, batch_size: int) -> Iterator[dict]:
        """All images in order, as evaluation sees them, the last batch padded.

        Yields:
            The arrays of the fields of images `[b, ...]` by name, _mask float32 [b] (0 = padding),
            index int32 [b] (row).

        Raises:
            UserError: an image cannot be read; a score over the rest would be another score.
        """
        make = functools.partial(self._batch, batch_size=batch_size)
        return prefetch(make, range(0, self.num_images, batch_size), self._workers)

    def _batch(self, start: int, parallel_map, batch_size: int) -> dict:
        examples = self._examples[start : start + batch_size]
        rows = np.arange(start, start + len(examples), dtype=np.int32)
        return padded(self._images.some(examples, parallel_map) | {INDEX: rows}, batch_size)


def padded(batch: dict, batch_size: int) -> dict:
    """A batch `[b, ...]` filled up with copies of its first row, and the `MASK` of what is real."""
    row = np.arange(batch_size)
    real = row < len(batch[INDEX])
    row = np.where(real, row, 0)
    return {name: array[row] for name, array in batch.items()} | {MASK: real.astype(np.float32)}
