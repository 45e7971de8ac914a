"""Accuracy of a classification task, beside the share of the most frequent class."""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.batches import Rows


class ClassificationEvaluator:
    """Every example of a source with labels once; see `evaluators.make_evaluator`.

    Yields `accuracy`; `majority`, what always answering the most frequent class gives;
    `accuracy_CLASS` of the examples of each class; and for sources with groups `consistency`, the
    share of groups whose examples are all right (NLVR2: of sentences).
    """

    fields = Rows.fields

    def __init__(self, source, settings, data_config, tokenizer, seed):
        del seed  # nothing is drawn
        self._rows = Rows(source, settings, data_config, tokenizer)
        examples = self._rows.data.source
        if "label" not in examples.fields:
            raise UserError("The evals block of kind 'classification' has a source without labels; "
                            "give it one of a task with classes, such as kind='ve'.")
        count = range(len(self._rows.data))
        self._classes = examples.class_names
        self._labels = np.array([examples.label(index) for index in count])
        groups = [examples.group(index) for index in count]
        self._groups = None if None in groups else np.unique(groups, return_inverse=True)[1]
        self.description = f"{len(self._labels)} examples of {len(self._classes)} classes"

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent).

        Raises:
          UserError: the source has other classes than the task.
        """
        logits_nc = self._rows.run(predict_fns["classify"], params, mesh)
        if logits_nc.shape[1] != len(self._classes):
            raise UserError(f"The task has {logits_nc.shape[1]} classes, but the source of the "
                            f"evals block of kind 'classification' has {len(self._classes)} "
                            f"({', '.join(self._classes)}); give it the source of its task.")
        right = is_right(logits_nc, self._labels)
        yield "accuracy", 100 * float(np.mean(right))
        yield "majority", 100 * float(np.max(np.bincount(self._labels))) / len(right)
        for number, name in enumerate(self._classes):
            if np.any(self._labels == number):
                yield f"accuracy_{name}", 100 * float(np.mean(right[self._labels == number]))
        if self._groups is not None:
            wrong = np.bincount(self._groups, weights=~right)
            yield "consistency", 100 * float(np.mean(wrong == 0))


def is_right(logits_nc, labels_n):
    """Whether the label's logit is above all others, bool `[n]`.

    Equal or undefined logits are wrong: a constant prediction finds nothing.
    """
    label_logit_n1 = np.take_along_axis(logits_nc, labels_n[:, None], axis=1)
    return np.sum(logits_nc < label_logit_n1, axis=1) == logits_nc.shape[1] - 1
