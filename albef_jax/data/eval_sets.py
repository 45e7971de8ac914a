"""What is evaluated: the examples of a source row by row, or all its images and all its texts."""

import functools
from collections.abc import Iterator, Mapping, Sequence

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
        examples: the example of each row; by default every example is a row.

    Attributes:
        source: the examples.
        light: the arrays `[n, ...]` of the fields that fit into memory, by name.
    """

    def __init__(self, source: Source, fields: Mapping[str, Field], tokenizer, data_config,
                 limit: int = 0, examples: Sequence[int] | None = None):
        self.source = source
        self._fields = open_fields(fields, source, tokenizer, "The source of an evals block")
        self._workers = num_workers(data_config)
        self._examples = (range(len(source)) if examples is None else examples)[:limit or None]
        self.light = {}
        for name, field in self._fields.items():
            if field.light:
                self.light |= field.trimmed(self._load(name, range(len(self)), map))

    def __len__(self) -> int:
        return len(self._examples)

    def some(self, rows: list[int], parallel_map=map) -> dict:
        """The arrays `[b, ...]` of some rows by name.

        Raises:
            UserError: one cannot be read; a score over the rest would be another score.
        """
        batch = {name: array[rows] for name, array in self.light.items()}
        for name, field in self._fields.items():
            if not field.light:
                batch |= self._load(name, rows, parallel_map)
        return batch

    def text(self, row: int) -> str:
        """The text of a row as the model reads it, cleaned."""
        written = self.source.get(self._examples[row], "text")
        return self._fields["text"].clean(written[0], train=False)

    def pictures(self, row: int) -> list[Image.Image]:
        """The images of a row as a person looks at them: RGB, own size; raises BrokenImage."""
        raw = read(functools.partial(self.source.get, self._examples[row], "image"))
        return [decode(open_image(one)) for one in (raw if isinstance(raw, list) else [raw])]

    def batches(self, batch_size: int) -> Iterator[dict]:
        """All rows in order, the last batch padded with copies of its first row; as `some`.

        The arrays `[b, ...]` by name, `_mask` float32 `[b]` (0 = padding), `index` int32 `[b]` (the
        row).
        """
        def batch(start: int, parallel_map) -> dict:
            place = np.arange(start, start + batch_size, dtype=np.int32)
            real = place < len(self)
            arrays = self.some(place[real].tolist(), parallel_map) | {INDEX: place[real]}
            copied = np.where(real, place - start, 0)
            padded = {name: array[copied] for name, array in arrays.items()}
            return padded | {MASK: real.astype(np.float32)}

        return prefetch(batch, range(0, len(self), batch_size), self._workers)

    def _load(self, name: str, rows: Sequence[int], parallel_map) -> dict:
        examples = [self._examples[row] for row in rows]
        values = [functools.partial(self.source.get, example, name) for example in examples]
        arrays, problems = self._fields[name].load(values, [None] * len(values), False,
                                                   parallel_map)
        for example, problem in zip(examples, problems):
            if problem:
                raise UserError(
                    f"The evaluation example {self.source.name(example)} cannot be read "
                    f"({problem}); mend it or remove it from the evaluation data.")
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
        self._images = EvalRows(source, of_images, tokenizer, data_config,
                                examples=self._examples)

    def describes(self, text: int, row: int) -> bool:
        """Whether a text is true of the image of a row, see `Source.describes`."""
        return self.source.describes(*self._owners[text], self._examples[row])

    def images(self, batch_size: int) -> Iterator[dict]:
        """All images in order, the arrays of their fields by name; see `EvalRows.batches`."""
        return self._images.batches(batch_size)

    def picture(self, row: int) -> Image.Image:
        """The image of a row, see `EvalRows.pictures`."""
        return self._images.pictures(row)[0]
