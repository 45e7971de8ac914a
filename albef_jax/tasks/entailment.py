"""Visual entailment (SNLI-VE): does an image contradict, leave open or entail a text?"""

from albef_jax.models.classification import Entailment as Model
from albef_jax.tasks.base import Rule, same
from albef_jax.tasks.classification import Classification, with_classifier
from albef_jax.tasks.retrieval import NO_WORDS
from albef_jax.tasks.vqa import NO_MATCHING


class Entailment(Classification):
    """See `Classification`."""

    # No sentence of 30 words is cut, which hardly ever have more than 36 tokens.
    TEXTS = dict(text_length=40)
    module = Model
    class_names = ("contradiction", "neutral", "entailment")
    RULES = {"pretrain": Rule(with_classifier, NO_WORDS | NO_MATCHING), "ve": Rule(same, {})}
