"""Models that say something about one example: an answer to a question, the class of a text."""

import functools
import os
from typing import NamedTuple

import jax
import numpy as np

from albef_jax.data.fields.answers import encode_answers, read_answer_list
from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.data.sources.captions import QUESTION
from albef_jax.errors import UserError
from albef_jax.inference.inputs import as_images, as_texts, not_blank, only
from albef_jax.inference.model import Model


class Answer(NamedTuple):
    """An answer, as in the list or as the model wrote it, and its probability.

    The probability is among the candidates that were read as a whole; of a written answer, its own.
    """

    text: str
    probability: float


class AnswerModel(Model):
    """A model of question answering."""

    calls = ("encode", "rank", "generate")
    asks = {"image": ImageField, "text": TextField}
    cleaning = "question"

    def answer(self, image, question, answers=None, k=128, beams=3):
        """Answers to a question, a list of `Answer`, k or `beams` of them, best first.

        Args:
          image: one: a path, an encoded file as bytes, a PIL image, pixels uint8 `[h, w, 3]`.
          question: cleaned and cut as in evaluation.
          answers: texts to choose from, or the path of a JSON list of them; None: the model
            writes.
          k: with `answers`, how many are read as a whole: those with the likeliest first words.
          beams: without, how many texts are extended in parallel.

        Raises:
          UserError: the image or the list cannot be read, an answer is too long, or there are
            several images or questions.
        """
        image = self._load("image", only(as_images(image), "images"))
        (question,) = only(as_texts(question), "questions")
        text = self._load("text", [not_blank(question, "question")])
        states, mask = self._call(self.forward["encode"], **image, **text), text["text_mask"]
        length = self.config.data.answer_length
        if answers is None:
            write = with_numbers(self.forward["generate"], self.tokenizer.sep_id, length, beams)
            (ids_kl,), (scores_k,) = jax.device_get(self._call(write, states, mask))
            return [Answer(self.tokenizer.decode(ids), float(np.exp(score)))
                    for ids, score in zip(ids_kl, scores_k)]
        texts = (read_answer_list(answers) if isinstance(answers, (str, os.PathLike))
                 else as_texts(answers))
        # As the public code scores them: the first token counts twice.
        rank = with_numbers(self.forward["rank"], min(k, len(texts)), True)
        (chosen_k,), (scores_k,) = jax.device_get(self._call(
            rank, states, mask, encode_answers(texts, self.tokenizer, length)))
        return [Answer(texts[i], float(probability))
                for i, probability in zip(chosen_k, jax.nn.softmax(scores_k))]

    def caption(self, image, beams=3):
        """Captions of an image, a list of `beams` of `Answer`, best first.

        Args:
          image, beams: see `answer`.

        Raises:
          UserError: see `answer`; or the model has not learned to write captions.
        """
        source = self.config.data.source
        if source.kind != "captions":
            raise UserError("This model has learned to answer questions, not to write captions; "
                            "train one with a data.source of kind 'captions', such as "
                            "configs/demo_tasks.py:captions.")
        return self.answer(image, source.get("question", QUESTION), beams=beams)


@functools.lru_cache(maxsize=64)
def with_numbers(function, *numbers):
    """A function of arrays that has these as its last arguments; the same for the same numbers."""
    return lambda *arrays: function(*arrays, *numbers)


class ClassModel(Model):
    """A model that classifies a text about images, such as visual entailment and NLVR2."""

    calls = ("classify",)
    asks = {"image": ImageField, "text": TextField}

    def classify(self, images, text):
        """Class -> probability of a text.

        Args:
          images: one, or the two that a model of NLVR2 compares; each a path, an encoded file as
            bytes, a PIL image or pixels uint8 `[h, w, 3]`.
          text: a hypothesis or a statement about them, cleaned and cut as in evaluation.

        Raises:
          UserError: an image cannot be read, or there are too few or too many, or several texts.
        """
        images, shape = as_images(images), self.fields["image"].spec()["image"].shape
        views = 1 if len(shape) == 3 else shape[0]
        if len(images) != views:
            raise UserError(f"classify got {len(images)} image(s); a model of the task "
                            f"{self.config.task!r} looks at {views}.")
        image = self._load("image", images if views == 1 else [images])
        text = self._load("text", only(as_texts(text), "texts"))
        (logits_c,) = self._call(self.forward["classify"], **image, **text)
        probabilities = jax.nn.softmax(logits_c)
        names = self.task.class_names or map(str, range(len(probabilities)))
        return dict(zip(names, map(float, probabilities)))
