"""Lists of answers to choose from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from albef_jax.data.sources.base import Source
from albef_jax.data.text import Tokenizer
from albef_jax.errors import UserError
from albef_jax.files import read_bytes


def read_answer_list(path: str) -> list[str]:
    """The answers of an `answer_list.json`, without repetition.

    Raises:
        UserError: it cannot be read, or is no list of texts with at least one.
    """
    try:
        answers = json.loads(read_bytes(path))
    except OSError as error:
        raise UserError(f"The answer list {path} cannot be read ({error.strerror}); give the path "
                        "of a JSON list of texts.") from None
    except ValueError as error:
        raise UserError(f"The answer list {path} is not valid JSON: {error}.") from None
    is_list = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    if not is_list or not answers:
        raise UserError(f'The answer list {path} must be a JSON list of texts, such as ["yes", '
                        '"no"], with at least one.')
    return list(dict.fromkeys(answers))


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
