"""Answers to questions about images."""

import os
from typing import NamedTuple

import jax
import numpy as np

from albef_jax.data.answers import encode_answers, read_answer_list
from albef_jax.inference.inputs import as_images, as_texts, load_images, only, tokenize
from albef_jax.inference.model import Model
from albef_jax.tasks import make_task


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

    def __init__(self, config, params, tokenizer, batch_size=32):
        super().__init__(config, params, tokenizer, batch_size)
        functions = make_task(config).predict_fns()
        self._encode = jax.jit(functions["encode"])
        self._rank = jax.jit(functions["rank"], static_argnums=(4, 5))
        self._generate = jax.jit(functions["generate"], static_argnums=(3, 4, 5))

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
        ids_bl, mask_bl = tokenize(only(as_texts(question), "questions"), self.tokenizer,
                                   self.config.data, "question")
        states = self._call(self._encode, pixels, ids_bl, mask_bl)
        if answers is None:
            return self._write(states, mask_bl, beams)
        texts = (read_answer_list(answers) if isinstance(answers, (str, os.PathLike))
                 else as_texts(answers))
        candidates = encode_answers(texts, self.tokenizer, self.config.data.answer_length)
        chosen, scores = self._call(self._rank, states, mask_bl, candidates, min(k, len(texts)),
                                    True)
        probabilities = np.asarray(jax.nn.softmax(scores[0]))
        return [Answer(texts[i], float(p)) for i, p in zip(np.asarray(chosen[0]), probabilities)]

    def _write(self, states, mask_bl, beams):
        ids_bkl, scores_bk = self._call(self._generate, states, mask_bl, self.tokenizer.sep_id,
                                        self.config.data.answer_length, beams)
        return [Answer(self.tokenizer.decode(ids), float(np.exp(score)))
                for ids, score in zip(np.asarray(ids_bkl[0]), np.asarray(scores_bk[0]))]
