"""Accuracy of a classification task, beside the share of the most frequent class."""

import jax
import numpy as np

from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.batches import Rows
from albef_jax.evaluators.choices import EXAMPLES, choices
from albef_jax.evaluators.queries import spread


class ClassificationEvaluator(Evaluator):
    """Every example of a source with labels once, whatever else `classify` looks at.

    Yields `accuracy`; `majority`, what always answering the most frequent class gives;
    `accuracy_CLASS` of the examples of each class; and for sources with groups `consistency`, the
    share of groups whose examples are all right (NLVR2: of sentences).
    """

    options = Rows.options
    calls = ("classify",)
    asks = ("label",)
    labels = {"majority": "always the commonest answer",
              "consistency": "sentences right throughout"}
    headline = {"accuracy": "held-out accuracy"}
    charts = (Chart("Held-out {name}, %", {"accuracy": "accuracy", "consistency": "consistency"},
                    blind="majority", note="dashed: always the commonest answer", top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows = Rows(self, self.inputs("classify"))
        get, count = self.source.get, range(len(self._rows))
        self._classes = self.source.fields["label"]["class_names"]
        self._labels = np.array([get(i, "label") for i in count])
        grouped = "group" in self.source.fields
        self._groups = np.unique([get(i, "group") for i in count],
                                 return_inverse=True)[1] if grouped else None
        self.description = f"{len(self._labels)} examples of {len(self._classes)} classes"

    def names(self):
        """See `Evaluator.names`."""
        classes = [f"accuracy_{name}" for number, name in enumerate(self._classes)
                   if np.any(self._labels == number)]
        return ["accuracy", "majority", *classes,
                *(["consistency"] if self._groups is not None else [])]

    def run(self, forward):
        """Yields (name, percent)."""
        logits_nc = self._rows.run(forward, forward["classify"])
        right = is_right(logits_nc, self._labels)
        yield "accuracy", 100 * float(np.mean(right))
        yield "majority", 100 * float(np.max(np.bincount(self._labels))) / len(right)
        for number, name in enumerate(self._classes):
            if np.any(self._labels == number):
                yield f"accuracy_{name}", 100 * float(np.mean(right[self._labels == number]))
        if self._groups is not None:
            wrong = np.bincount(self._groups, weights=~right)
            yield "consistency", 100 * float(np.mean(wrong == 0))

    @classmethod
    def label(cls, name):
        """See `Evaluator.label`."""
        return super().label(name.replace("accuracy_", "accuracy: "))

    def beneath(self, name, values):
        """See `Evaluator.beneath`."""
        return [f"always the commonest: {values['majority']:.1f}%"] if "majority" in values else []

    def examples(self, forward, teacher):
        """How probable the classes are."""
        numbers = spread(len(self._rows), EXAMPLES)
        shares = jax.nn.softmax(self._rows.some(forward, forward["classify"], numbers))
        return {"rows": [choices(self._rows, i, self._classes, np.asarray(share),
                                 [self._classes[self._labels[i]]])
                         for i, share in zip(numbers, shares)]}


def is_right(logits_nc, labels_n):
    """Whether the label's logit is above all others, bool `[n]`.

    Equal or undefined logits are wrong: a constant prediction finds nothing.
    """
    label_logit_n1 = np.take_along_axis(logits_nc, labels_n[:, None], axis=1)
    return np.sum(logits_nc < label_logit_n1, axis=1) == logits_nc.shape[1] - 1
