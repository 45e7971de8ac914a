"""The contract between a task (what is learned) and the step, loop and evaluators."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from albef_jax.models.albef import scale_initial_weights
from albef_jax.parallel.axes import axis_names


class Aux(NamedTuple):
    """What a loss returns beside the scalar.

    Attributes:
      metrics: name -> scalar, averaged over groups and logged.
      enqueue: arrays `[group_size, ...]` for `update_memory`, gathered in global order.
      record: named intermediates, for tests and inspection; never computed unless read.
    """

    metrics: dict[str, jax.Array]
    enqueue: dict[str, jax.Array]
    record: dict[str, Any]


class Task:
    """What is learned: one file in tasks/, one entry in the registry of `tasks/__init__.py`.

    A task has an `__init__(config)`, a model, a loss, and what of the rest is not as here.

    Attributes:
      needs: what a batch must have besides images and texts, of `Source.fields`.
      views: images per text; with several, a batch's images are `[b, views, s, s, 3]`.
      model: linen module of a config's `model` block, its attribute `config`; called with
        `images`, text ids and mask it touches every parameter once.
    """

    needs: tuple[str, ...] = ()
    views: int = 1
    model: nn.Module

    def init(self, rng):
        """Fresh online parameters; all shapes are in the config."""
        return scale_initial_weights(nn.unbox(self._model_init(rng)), self.model.config.init_std)

    def axes(self):
        """The names of the parameters' axes: a tree as of `init`, of `PartitionSpec`s."""
        def names(path, leaf):
            del leaf
            known = named
            for key in path:
                known = known.get(key.key, PartitionSpec()) if isinstance(known, dict) else known
            return known

        rng = jax.random.key(0)
        named = axis_names(jax.eval_shape(self._model_init, rng))
        return jax.tree_util.tree_map_with_path(names, jax.eval_shape(self.init, rng))

    def _model_init(self, rng):
        m = self.model.config
        views = (self.views,) if self.views > 1 else ()
        image = jnp.zeros((1, *views, m.image_size, m.image_size, 3), jnp.uint8)
        ids_bl = jnp.full((1, 2), m.cls_id, jnp.int32)
        return self.model.init(rng, *self.images(image), ids_bl, jnp.ones_like(ids_bl))["params"]

    def images(self, image):
        """The images of a batch as the model takes them, a tuple."""
        return (image,)

    def init_memory(self, rng):
        """Fresh memory (queues and the like), a dict."""
        del rng
        return {}

    def prepare(self, params):
        """Parameters as they enter the step: what is clamped is clamped here."""
        return params

    def teacher_of(self, params):
        """The subtree of the parameters that has a momentum copy."""
        del params
        return {}

    def schedule(self, step):
        """Scalars that depend on the number of finished steps, as a dict."""
        del step
        return {}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """The loss of ONE group, and its Aux.

        Args:
          params: prepared online parameters. teacher: the EMA with this step's weights.
          memory: as at the start of the step. group: the batch fields, `[group_size, ...]`.
          key: PRNG key of this step and group. schedule: from `schedule`.
          draws: random choices to use instead of drawing them, or None.
        """
        raise NotImplementedError

    def update_memory(self, memory, enqueue):
        """Memory after the step; `enqueue` holds the whole batch in global order."""
        del enqueue
        return memory

    def predict_fns(self):
        """name -> pure function of the online parameters, for evaluation."""
        return {}
