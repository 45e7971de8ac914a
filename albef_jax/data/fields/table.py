"""Property tables as token ids that know which property or value they are part of."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.base import Field, read_all
from albef_jax.data.fields.text import random_words
from albef_jax.data.table import Pairs, parse_table

SHORTEST = 10  # tokens of a table of noise
NOISE_ENTITY = 2  # tokens of a property or a value of noise


class TableField(Field):
    """Arrays `table_ids`, `table_mask`, `table_entity` int32 `[l]`, and `table_present` bool `[]`.

    `[CLS] p1 v1 p2 v2 ... [SEP]` without marks in between, and then a plain cut: a table that is
    too long loses its [SEP] and may end inside a value, as in the public SCALE code. Entity 2k + 1
    is the property of pair k (from 0), 2k + 2 its value, 0 everything else.

    The raw value is what `data.table.parse_table` knows. Properties without a value are left out
    and counted; a table without any value is a missing one: [CLS] [SEP], not present.

    Args:
        data: the `data` block of a config. words: its block with vocab_size, pad_id and cls_id.
    """

    defaults = dict(table_length=64)  # tokens
    limits = dict(table_length=(2, None))
    needs_tokenizer = True

    def __init__(self, data, words):
        self._length, self._words = data.table_length, words
        self._tokenizer = None
        self._valueless = self._empty = 0

    def open(self, facts, tokenizer):
        self._tokenizer = tokenizer

    def spec(self):
        one = jax.ShapeDtypeStruct((self._length,), np.int32)
        return {"table_ids": one, "table_mask": one, "table_entity": one,
                "table_present": jax.ShapeDtypeStruct((), np.bool_)}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`; nothing is drawn, and the tokenizer has threads of its own."""
        raw, problems = read_all(values, None)
        tables = []
        for row, table in enumerate(raw):
            try:
                tables.append(self._with_values(parse_table(table)))
            except ValueError as error:
                tables.append([])
                problems[row] = f"the table {error}"
        ids = np.full((len(tables), self._length), self._tokenizer.pad_id, np.int32)
        mask, entity = np.zeros_like(ids), np.zeros_like(ids)
        pieces = iter(self._tokenizer.pieces([text for table in tables for pair in table
                                              for text in pair]))
        for row, table in enumerate(tables):
            tokens, entities = [self._tokenizer.cls_id], [0]
            for number in range(1, 2 * len(table) + 1):
                part = next(pieces)
                tokens += part
                entities += [number] * len(part)
            tokens = [*tokens, self._tokenizer.sep_id][:self._length]
            ids[row, :len(tokens)] = tokens
            mask[row, :len(tokens)] = 1
            entity[row, :len(entities)] = entities[:self._length]
        return {"table_ids": ids, "table_mask": mask, "table_entity": entity,
                "table_present": np.array([bool(table) for table in tables])}, problems

    def noise(self, rng, n):
        ids, mask = random_words(rng, self._words, (n,), self._length, SHORTEST)
        entity = 1 + (np.arange(self._length) - 1) // NOISE_ENTITY
        return {"table_ids": ids, "table_mask": mask,
                "table_entity": (entity * mask).astype(np.int32),
                "table_present": np.ones(n, bool)}

    def notes(self):
        """What was left out of tables."""
        return [f"{self._valueless} properties without a value were left out of their tables, "
                f"{self._empty} tables had no value at all"] * bool(self._valueless)

    def _with_values(self, pairs: Pairs) -> Pairs:
        kept = [pair for pair in pairs if all(pair)]
        self._valueless += len(pairs) - len(kept)
        self._empty += bool(pairs) and not kept
        return kept
