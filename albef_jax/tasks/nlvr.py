"""NLVR2: is a text true of a pair of images?"""

from albef_jax.models.classification import Nlvr as Model
from albef_jax.tasks.classification import Classification


class Nlvr(Classification):
    """Classes: 0 false, 1 true. Images come as `[b, 2, s, s, 3]`."""

    module = Model
    classes = 2
    views = 2

    def images(self, image):
        """First and second images."""
        return image[:, 0], image[:, 1]
