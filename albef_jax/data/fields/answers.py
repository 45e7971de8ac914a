"""Right answers to a question, each with its weight."""

from __future__ import annotations

import jax
import numpy as np

from albef_jax.data.fields.base import Field, read_all
from albef_jax.data.fields.text import random_words

SHORTEST = 3  # tokens of an answer of noise
LISTED = 10


class AnswersField(Field):
    """Arrays `answer_ids`, `answer_mask` int32 `[a, l]` and `answer_weight` float32 `[a]`.

    The raw value is a list of (answer, weight). The heaviest `max_answers` are taken, and left out
    where they are longer than `answer_length`; a free slot is [CLS] with weight 0.

    Args:
        data: the `data` block of a config. words: its block with vocab_size, pad_id and cls_id.
    """

    defaults = dict(answer_length=10, max_answers=10)  # tokens with [CLS] and [SEP]; per question
    limits = dict(answer_length=(3, None), max_answers=(1, None))
    needs_tokenizer = True

    def __init__(self, data, words):
        self._length, self._most, self._words = data.answer_length, data.max_answers, words
        self._tokenizer = None
        self._skipped: set[str] = set()

    def open(self, facts, tokenizer):
        self._tokenizer = tokenizer

    def spec(self):
        words = jax.ShapeDtypeStruct((self._most, self._length), np.int32)
        return {"answer_ids": words, "answer_mask": words,
                "answer_weight": jax.ShapeDtypeStruct((self._most,), np.float32)}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`; nothing is drawn."""
        answers, problems = read_all(values, [])
        chosen = [sorted(some, key=lambda answer: -answer[1])[:self._most] for some in answers]
        texts = [text for some in chosen for text, _ in some]
        weight_n = np.array([share for some in chosen for _, share in some], np.float32)
        filled = np.arange(self._most) < np.array([len(some) for some in chosen])[:, None]
        ids_nl, mask_nl = self._tokenizer.encode(texts, self._length + 1, sep=True)
        fits_n = mask_nl.sum(axis=1) <= self._length
        self._skipped.update(text for text, fits in zip(texts, fits_n) if not fits)
        ids = np.full((len(chosen), self._most, self._length), self._tokenizer.pad_id, np.int32)
        ids[..., 0] = self._tokenizer.cls_id  # an empty slot is [CLS]: its attention has a key
        mask = np.zeros_like(ids)
        mask[..., 0] = 1
        weight = np.zeros((len(chosen), self._most), np.float32)
        ids[filled] = ids_nl[:, :self._length]
        mask[filled] = mask_nl[:, :self._length]
        weight[filled] = fits_n * weight_n
        return {"answer_ids": ids, "answer_mask": mask, "answer_weight": weight}, problems

    def noise(self, rng, n):
        ids, mask = random_words(rng, self._words, (n, self._most), self._length, SHORTEST)
        weight = rng.dirichlet(np.ones(self._most), n).astype(np.float32)
        return {"answer_ids": ids, "answer_mask": mask, "answer_weight": weight}

    def notes(self):
        """The answers that are too long."""
        if not self._skipped:
            return []
        listed = ", ".join(sorted(self._skipped)[:LISTED])
        return [f"{len(self._skipped)} answers are longer than data.answer_length and were left "
                f"out: {listed}"]
