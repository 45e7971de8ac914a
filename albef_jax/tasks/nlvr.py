"""NLVR2: is a text true of a pair of images?"""

from albef_jax.models.classification import Nlvr as Model
from albef_jax.tasks.base import Rule, same
from albef_jax.tasks.classification import Classification, with_classifier
from albef_jax.tasks.vqa import NO_MATCHING


def teacher_from_online(path):
    """An `Origin`: text assignment has no teacher, so it starts as a copy of the online weights.

    As the paper says; in the public code it starts at random.
    """
    path = with_classifier(path)
    return ("params", *path[1:]) if path[0] == "teacher" else path


class Nlvr(Classification):
    """See `Classification`; images come as `[b, 2, s, s, 3]`."""

    # No sentence of 30 words is cut; the longest of the dev split has 41 tokens.
    TEXTS = dict(text_length=48)
    module = Model
    class_names = ("false", "true")
    views = 2
    RULES = {"nlvr": Rule(same, {}), "nlvr_pretrain": Rule(
        teacher_from_online, NO_MATCHING | {("ta_head",): "the task assigns no texts"})}

    def images(self, image):
        """First and second images."""
        return image[:, 0], image[:, 1]
