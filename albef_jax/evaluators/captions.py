"""Captions that a model writes, judged by sources that know what their pictures show."""

import functools

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.batches import Rows, percent
from albef_jax.evaluators.choices import EXAMPLES
from albef_jax.evaluators.queries import spread
from albef_jax.evaluators.vqa import of_questions


class CaptionsEvaluator(Evaluator):
    """Whether the caption that a model writes of each image is true, in percent of the images.

    Of a source of kind `captions` whose own source can judge a text (`Source.truth`), such as
    rendered scenes. Yields `true`, `false` and `nonsense` (no sentence of the grammar), and what
    says how much of this looking at the picture is worth: `true_of_another`, the share of captions
    that are true of the next image.
    """

    options = {"beams": (3, 1)}
    calls = ("encode", "generate")
    asks = ("image", "text")
    labels = {"true": "true of the picture", "false": "false", "nonsense": "not a sentence",
              "true_of_another": "true of another picture"}
    headline = {"true": "written captions, true"}
    charts = (Chart("Written captions of {name}, %", {"true": "true", "nonsense": "not a sentence"},
                    blind="true_of_another", note="dashed: true of another picture", top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        try:
            self.source.truth(0, "")
        except NotImplementedError as error:
            raise UserError(f"An evals block of kind 'captions' has a source that cannot judge what "
                            f"is written ({error}); give one that can, such as dict(kind="
                            "'captions', source='scenes:demo:heldout').") from None
        ids = self.source.image_ids()
        self._examples = np.sort(np.unique(ids, return_index=True)[1]).tolist()
        self._rows = Rows(self, examples=self._examples)
        self.description = f"{len(self._rows)} images, {self.settings['beams']} beams"

    def names(self):
        return [*self.labels]

    def run(self, forward):
        ids, _ = self._rows.run(forward, self._writer(forward), "captions")
        texts = list(map(self.tokenizer.decode, ids))
        truths = list(map(self.source.truth, self._examples, texts))
        for name, wanted in (("true", True), ("false", False), ("nonsense", None)):
            yield name, percent(truth is wanted for truth in truths)
        following = self._examples[1:] + self._examples[:1]
        yield "true_of_another", percent(map(bool, map(self.source.truth, following, texts)))

    def beneath(self, name, values):
        return [f"not a sentence: {values['nonsense']:.1f}%",
                f"true of another picture: {values['true_of_another']:.1f}%"]

    def examples(self, forward, teacher):
        """A few pictures, what is written of them and how probable the model finds it."""
        numbers, rows = spread(len(self._rows), EXAMPLES), []
        for number, ids, score in zip(numbers, *self._rows.some(
                forward, self._writer(forward), numbers)):
            example, text = self._examples[number], self.tokenizer.decode(ids)
            right = self.source.truth(example, text) is True
            rows.append({**self._rows.shown(number), "hit": right,
                         "choices": [{"text": text, "share": float(np.exp(score)), "right": right}],
                         "truth": self.source.get(example, "answers")[0][0]})
        return {"rows": rows}

    def _writer(self, forward):
        return writer(forward["encode"], forward["generate"], self.tokenizer.sep_id,
                      self.config.data.answer_length, self.settings["beams"])


@functools.lru_cache(maxsize=16)
def writer(encode, generate, end_id, length, beams):
    """The likeliest text of each example, ids `[b, l]` and its log probability `[b]`; see
    `Vqa.generate`."""
    written = of_questions(encode, lambda *questions: generate(*questions, end_id, length, beams))

    def best(params, image, text_ids, text_mask):
        ids_bkl, scores_bk = written(params, image, text_ids, text_mask)
        return ids_bkl[:, 0], scores_bk[:, 0]

    return best
