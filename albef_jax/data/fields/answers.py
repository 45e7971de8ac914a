"""Right answers to a question, each with its weight, and lists of answers to choose from."""

import json
from collections.abc import Sequence

import jax
import numpy as np

from albef_jax.data.fields.base import Field, read_all
from albef_jax.data.fields.text import random_words
from albef_jax.data.sources.base import Source, readable
from albef_jax.data.text import Tokenizer
from albef_jax.errors import UserError
from albef_jax.files import read_bytes

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


def read_answer_list(path: str) -> list[str]:
    """The answers of an `answer_list.json`, without repetition; raises UserError."""
    try:
        answers = json.loads(read_bytes(path))
    except OSError as error:
        raise UserError(f"The answer list {path} cannot be read ({error.strerror}); give the path "
                        "of a JSON list of texts.") from None
    except ValueError as error:
        raise UserError(f"The answer list {path} is not valid JSON: {error}.") from None
    is_list = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    some = is_list and [answer for answer in map(readable, answers) if answer.strip()]
    if not some:
        raise UserError(f'The answer list {path} must be a JSON list of texts, such as ["yes", '
                        '"no"], with at least one that is not blank.')
    return list(dict.fromkeys(some))


def answers_of(source: Source) -> list[str]:
    """The answers to choose from that a source knows: its fact `choices`, else all right ones."""
    choices = source.fields["answers"].get("choices")
    return list(choices or dict.fromkeys(
        answer for index in range(len(source)) for answer, _ in source.get(index, "answers")))


def encode_answers(answers: Sequence[str], tokenizer: Tokenizer, length: int):
    """Ids and mask int32 [c, l] of answers that end with [SEP], cut to the longest.

    Raises:
        UserError: an answer has more than `length` tokens.
    """
    ids_cl, mask_cl = tokenizer.encode(answers, length + 1, sep=True)
    tokens_c = mask_cl.sum(axis=1)
    if tokens_c.max() > length:
        answer = answers[int(np.argmax(tokens_c > length))]
        raise UserError(f"The answer {answer!r} has more than data.answer_length={length} tokens "
                        "with [CLS] and [SEP]; raise that, or leave it out of the answers.")
    return ids_cl[:, :tokens_c.max()], mask_cl[:, :tokens_c.max()]
