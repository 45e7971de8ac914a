"""The class of an example."""

import numpy as np

from albef_jax.data.fields.number import NumberField
from albef_jax.errors import UserError


class LabelField(NumberField):
    """Array `label` int32: the number of a class.

    Args:
        classes: how many the task tells apart.
    """

    def __init__(self, classes: int):
        super().__init__("label")
        self._classes = classes

    def check_facts(self, facts, where):
        """The source must have as many classes (fact `class_names`)."""
        names = facts.get("class_names", ())
        if len(names) != self._classes:
            listed = f" ({', '.join(names)})" if names else ""
            raise UserError(f"The task tells {self._classes} classes apart, but {where} has "
                            f"{len(names)}{listed}; give it a source that is made for the task.")

    def noise(self, rng, n):
        return {"label": rng.integers(0, self._classes, n, np.int32)}
