"""Texts as token ids: one of an example's texts, cleaned as the public ALBEF code does."""

import jax
import numpy as np

from albef_jax.data.fields.base import Field, read_all
from albef_jax.data.text import clean

SHORTEST = 10  # tokens of a text of noise


def random_words(rng, words, shape, length: int, shortest: int):
    """Ids and mask int32 `[*shape, length]`: [CLS] and random words, padded.

    Args:
        words: a block with vocab_size, pad_id and cls_id. shortest: least length, if that fits.
    """
    ids = rng.integers(min(1000, words.vocab_size // 2), words.vocab_size, (*shape, length),
                       np.int32)
    lengths = rng.integers(min(shortest, length), length + 1, (*shape, 1))
    mask = (np.arange(length) < lengths).astype(np.int32)
    ids = np.where(mask == 1, ids, words.pad_id).astype(np.int32)
    ids[..., 0] = words.cls_id
    return ids, mask


class TextField(Field):
    """Arrays `NAME_ids` and `NAME_mask` int32 `[l]`, 1 for real tokens.

    The raw value is a list of texts: training draws one, evaluation reads the first.

    Args:
        data: the `data` block of a config. words: its block with vocab_size, pad_id and cls_id.
        name: of the arrays.
    """

    defaults = dict(
        text_length=25,  # tokens
        max_words=30, sep=False,
        eval_text_length=0, eval_max_words=0,  # in evaluation; 0: the same
        tokenizer="",  # a Hugging Face name or a folder; '': train one on the texts
        vocab_size=30522)  # of a trained one, at most
    limits = dict(text_length=(2, None), max_words=(1, None), eval_text_length=(0, None),
                  eval_max_words=(0, None), vocab_size=(1, None))
    needs_tokenizer = True

    def __init__(self, data, words, name: str = "text"):
        self._data, self._words, self._names = data, words, (f"{name}_ids", f"{name}_mask")
        self._tokenizer = self._cleaning = None

    def open(self, facts, tokenizer):
        """The source says how its texts are cleaned (fact `cleaning`)."""
        self._tokenizer, self._cleaning = tokenizer, facts.get("cleaning", "caption")

    def spec(self):
        one = jax.ShapeDtypeStruct((self._data.text_length,), np.int32)
        return {name: one for name in self._names}

    def load(self, values, rngs, train, parallel_map=map):
        """See `Field.load`; the tokenizer has threads of its own."""
        texts, problems = read_all(values, [""])
        chosen = [self.clean(some[int(rng.random() * len(some)) if train else 0], train)
                  for some, rng in zip(texts, rngs)]
        return self.encode(chosen, train), problems

    def clean(self, text: str, train: bool) -> str:
        """A text as training or evaluation reads it."""
        words = self._data.max_words if train else (
            self._data.eval_max_words or self._data.max_words)
        return clean(text, self._cleaning, words)

    def encode(self, texts, train: bool):
        """The arrays `[n, l]` of cleaned texts; evaluation may read longer ones."""
        length = self._data.text_length if train else (
            self._data.eval_text_length or self._data.text_length)
        return dict(zip(self._names, self._tokenizer.encode(texts, length, self._data.sep)))

    def cut(self, texts) -> list[tuple[int, int, int]]:
        """Of raw texts that evaluation does not read whole: row, and how many words and tokens
        there are, special ones included."""
        limit = self._data.eval_text_length or self._data.text_length
        whole = [clean(text, self._cleaning, len(text) + 1) for text in texts]
        read = [self.clean(text, False) for text in texts]
        counts = [len(pieces) + 1 + self._data.sep for pieces in self._tokenizer.pieces(whole)]
        return [(row, len(whole[row].split()), count) for row, count in enumerate(counts)
                if count > limit or whole[row] != read[row]]

    def noise(self, rng, n):
        ids_mask = random_words(rng, self._words, (n,), self._data.text_length, SHORTEST)
        return dict(zip(self._names, ids_mask))

    def trimmed(self, arrays):
        """Cut to the longest text: padding changes nothing."""
        longest = int(arrays[self._names[1]].sum(axis=1).max())
        return {name: array[:, :longest] for name, array in arrays.items()}
