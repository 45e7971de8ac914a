"""What all loaded models share: parameters, a tokenizer, and batches of few shapes."""

import jax
import numpy as np
from tqdm import tqdm

from albef_jax.errors import UserError
from albef_jax.inference.inputs import blocks


class NotOffered(UserError, AttributeError):
    """A model was asked for what its task does not do."""


class Model:
    """A trained model with its tokenizer and preprocessing; a subclass offers what its task does.

    Calls of any size run in batches of two shapes, one row or `batch_size` rows, so nothing is
    compiled anew for another number of images or texts.

    Attributes:
      config: of the run. params: its parameters. tokenizer: its tokenizer.
      batch_size: rows that run at once.
    """

    def __init__(self, config, params, tokenizer, batch_size=32):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.batch_size = batch_size

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        offered = [method for method in dir(type(self)) if not method.startswith("_")]
        raise NotOffered(f"A model of the task {self.config.task!r} has no {name}; it has "
                         f"{', '.join(offered) or 'nothing to offer'}, so load one of another "
                         "task for that.")

    def _call(self, function, *arrays):
        with jax.default_matmul_precision(self.config.matmul_precision):
            return function(self.params, *arrays)

    def _in_blocks(self, encode, count, what, progress):
        """Concatenates `encode(slice)` over blocks; one block is loaded while one is computed."""
        results = []
        for rows in tqdm(blocks(count, self.batch_size), what, unit="batch",
                         disable=None if progress else True):
            if results:
                results[-1] = jax.device_get(results[-1])
            results.append(encode(rows))
        return np.concatenate(jax.device_get(results))[:count]
