"""What a text is to an image, or to a pair of them."""

import jax
import numpy as np

from albef_jax.errors import UserError
from albef_jax.inference.inputs import as_images, as_texts, load_images, only, tokenize
from albef_jax.inference.model import Model
from albef_jax.tasks import make_task

CLASSES = {"ve": ("contradiction", "neutral", "entailment"), "nlvr": ("false", "true")}


class ClassModel(Model):
    """A model of visual entailment, or of NLVR2."""

    def __init__(self, config, params, tokenizer, batch_size=32):
        super().__init__(config, params, tokenizer, batch_size)
        self._task = make_task(config)
        self._classify = jax.jit(self._task.predict_fns()["classify"])

    def classify(self, images, text):
        """Class -> probability of a text.

        Args:
          images: one, or the two that a model of NLVR2 compares; each a path, an encoded file as
            bytes, a PIL image or pixels uint8 `[h, w, 3]`.
          text: a hypothesis or a statement about them, cleaned and cut as in evaluation.

        Raises:
          UserError: an image cannot be read, or there are too few or too many, or several texts.
        """
        images, views = as_images(images), self._task.views
        if len(images) != views:
            raise UserError(f"classify got {len(images)} image(s); a model of the task "
                            f"{self.config.task!r} looks at {views}.")
        pixels = load_images(images, self.config.model.image_size)
        ids_bl, mask_bl = tokenize(only(as_texts(text), "texts"), self.tokenizer,
                                   self.config.data)
        logits = self._call(self._classify, pixels if views == 1 else pixels[None], ids_bl,
                            mask_bl)
        probabilities = np.asarray(jax.nn.softmax(logits[0]))
        return dict(zip(CLASSES[self.config.task], map(float, probabilities)))
