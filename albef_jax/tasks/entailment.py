"""Visual entailment (SNLI-VE): does an image contradict, leave open or entail a text?"""

from albef_jax.models.classification import Entailment as Model
from albef_jax.tasks.classification import Classification


class Entailment(Classification):
    """Classes: 0 contradiction, 1 neutral, 2 entailment."""

    module = Model
    classes = 3
