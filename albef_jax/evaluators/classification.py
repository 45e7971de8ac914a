"""Accuracy of a classification task, beside the share of the most frequent class."""

import jax
import numpy as np

from albef_jax.evaluators.batches import Rows, percent
from albef_jax.evaluators.choices import EXAMPLES, ChoiceEvaluator, chart, choices
from albef_jax.evaluators.queries import spread


class ClassificationEvaluator(ChoiceEvaluator):
    """Every example of a source with labels once, whatever else `classify` looks at.

    Yields `accuracy`; `majority`, what always answering the most frequent class gives;
    `accuracy_CLASS` of the examples of each class; and for sources with groups `consistency`, the
    share of groups whose examples are all right (NLVR2: of sentences).
    """

    options = Rows.options
    calls = ("classify",)
    asks = ("label",)
    labels = ChoiceEvaluator.labels | {"consistency": "sentences right throughout"}
    headline = {"accuracy": "held-out accuracy"}
    charts = (chart({"accuracy": "accuracy", "consistency": "consistency"}),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows = Rows(self, self.inputs("classify"))
        get, count = self.source.get, range(len(self._rows))
        self._labels = np.array([get(i, "label") for i in count])
        self._class_names = self.source.fields["label"]["class_names"]
        of_class = {f"accuracy_{name}": self._labels == number
                    for number, name in enumerate(self._class_names)}
        self._classes = {name: rows for name, rows in of_class.items() if rows.any()}
        grouped = "group" in self.source.fields
        self._groups = np.unique([get(i, "group") for i in count],
                                 return_inverse=True)[1] if grouped else None
        self.description = f"{len(self._labels)} examples of {len(self._class_names)} classes"

    def names(self):
        grouped = self._groups is not None
        return ["accuracy", "majority", *self._classes, *["consistency"] * grouped]

    def run(self, forward):
        right = is_right(self._rows.run(forward, forward["classify"]), self._labels)
        yield "accuracy", percent(right)
        yield "majority", 100 * float(np.max(np.bincount(self._labels))) / len(right)
        for name, rows in self._classes.items():
            yield name, percent(right[rows])
        if self._groups is not None:
            yield "consistency", percent(np.bincount(self._groups, weights=~right) == 0)

    def examples(self, forward, teacher):
        """How probable the classes are."""
        numbers, names = spread(len(self._rows), EXAMPLES), self._class_names
        shares = jax.nn.softmax(self._rows.some(forward, forward["classify"], numbers))
        return {"rows": [choices(self._rows, i, names, np.asarray(share), [names[self._labels[i]]])
                         for i, share in zip(numbers, shares)]}


def is_right(logits_nc, labels_n):
    """Whether the label's logit is above all others, bool `[n]`.

    Equal or undefined logits are wrong: a constant prediction finds nothing.
    """
    label_logit_n1 = np.take_along_axis(logits_nc, labels_n[:, None], axis=1)
    return np.sum(logits_nc < label_logit_n1, axis=1) == logits_nc.shape[1] - 1
