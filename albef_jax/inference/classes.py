"""What a text is to an image, or to a pair of them."""

import jax
import numpy as np

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.inference.inputs import as_images, as_texts, load_images, only
from albef_jax.inference.model import Model


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
        pixels = load_images(images, shape[-2])
        logits_bc = self._call(self.forward["classify"], image=pixels.reshape(1, *shape),
                               **self._load("text", only(as_texts(text), "texts")))
        probabilities = np.asarray(jax.nn.softmax(logits_bc[0]))
        names = self.task.class_names or map(str, range(len(probabilities)))
        return dict(zip(names, map(float, probabilities)))
