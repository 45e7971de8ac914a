"""Answers to questions about images."""

import functools
import os
from typing import NamedTuple

import jax
import numpy as np

from albef_jax.data.fields.answers import encode_answers, read_answer_list
from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.inference.inputs import as_images, as_texts, load_images, only
from albef_jax.inference.model import Model


class Answer(NamedTuple):
    """An answer and its probability.

    Attributes:
      text: as in the list, or as the model wrote it.
      probability: among the candidates that were read as a whole; of a written answer, its own.
    """

    text: str
    probability: float


class AnswerModel(Model):
    """A model of question answering."""

    calls = ("encode", "rank", "generate")
    asks = {"image": ImageField, "text": TextField}
    cleaning = "question"

    def answer(self, image, question, answers=None, k=128, beams=3):
        """Answers to a question, best first.

        Args:
          image: one: a path, an encoded file as bytes, a PIL image, pixels uint8 `[h, w, 3]`.
          question: cleaned and cut as in evaluation.
          answers: texts to choose from, or the path of a JSON list of them; None: the model
            writes.
          k: with `answers`, how many are read as a whole: those with the likeliest first words.
          beams: without, how many texts are extended in parallel.

        Returns:
          A list of `Answer`, k or `beams` of them.

        Raises:
          UserError: the image or the list cannot be read, an answer is too long, or there are
            several images or questions.
        """
        pixels = load_images(only(as_images(image), "images"), self.config.model.image_size)
        text = self._load("text", only(as_texts(question), "questions"))
        states = self._call(self.forward["encode"], image=pixels, **text)
        if answers is None:
            return self._write(states, text["text_mask"], beams)
        texts = (read_answer_list(answers) if isinstance(answers, (str, os.PathLike))
                 else as_texts(answers))
        candidates = encode_answers(texts, self.tokenizer, self.config.data.answer_length)
        rank = ranking(self.forward["rank"], min(k, len(texts)))
        chosen, scores = self._call(rank, states, text["text_mask"], candidates)
        probabilities = np.asarray(jax.nn.softmax(scores[0]))
        return [Answer(texts[i], float(p)) for i, p in zip(np.asarray(chosen[0]), probabilities)]

    def _write(self, states, mask_bl, beams):
        write = writing(self.forward["generate"], self.tokenizer.sep_id,
                        self.config.data.answer_length, beams)
        ids_bkl, scores_bk = self._call(write, states, mask_bl)
        return [Answer(self.tokenizer.decode(ids), float(np.exp(score)))
                for ids, score in zip(np.asarray(ids_bkl[0]), np.asarray(scores_bk[0]))]


@functools.lru_cache(maxsize=64)
def ranking(rank, k):
    """The best k candidates as the public code scores them; the same function for the same k."""
    return lambda params, states, mask, candidates: rank(params, states, mask, candidates, k, True)


@functools.lru_cache(maxsize=64)
def writing(generate, end_id, length, beams):
    """Answers of at most this length; the same function for the same numbers."""
    return lambda params, states, mask: generate(params, states, mask, end_id, length, beams)
