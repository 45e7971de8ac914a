"""Running layers one after another: unrolled or as a loop, with or without recomputation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from albef_jax.models.layers import MAPS
from albef_jax.parallel.axes import whole


@dataclasses.dataclass(frozen=True)
class Stacking:
    """How a stack of layers is run; the values are the same.

    Dropout draws of a scanned stack differ from those of an unrolled one.

    Attributes:
      scan: one compiled layer in a loop over stacked parameters, which compiles sooner.
      remat: keep only what enters a layer and compute the rest again on the way back.
      save: names of activations that are kept all the same (`config.REMAT_POINTS`).
    """

    scan: bool = False
    remat: bool = False
    save: tuple[str, ...] = ()

    def run(self, layers, x, body):
        """Applies `body(layer, x) -> x` with each of the layers, modules of one class and size."""
        x = whole(x)
        if layers and self.scan and not _is_looked_into(layers[0]):
            return self._scan(layers, x, body)
        if self.remat:
            body = nn.remat(body, policy=self._policy())
        for layer in layers:
            x = whole(body(layer, x))
        return x

    def _scan(self, layers, x, body):
        module = layers[0].unbind()[0]
        params = [layer.variables["params"] for layer in layers]
        keys = [layer.make_rng("dropout") if layer.has_rng("dropout") else None
                for layer in layers]

        def one(x, layer):
            layer_params, key = layer
            rngs = None if key is None else {"dropout": key}
            return whole(module.apply({"params": layer_params}, x, method=body, rngs=rngs)), None

        if self.remat:
            # Inside a loop nothing can be merged with the way there, and barriers only cost.
            one = jax.checkpoint(one, policy=self._policy(), prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, keys))
        return jax.lax.scan(one, x, stacked)[0]

    def _policy(self):
        return jax.checkpoint_policies.save_only_these_names(*self.save)


def _is_looked_into(layer):
    """Whether parameters are made, or attention maps wanted: by layer, so no loop will do."""
    return layer.is_initializing() or layer.is_mutable_collection(MAPS)


def stacking(config):
    """The `Stacking` of a config's `model` block."""
    return Stacking(config.get("scan", False), config.get("remat", False),
                    tuple(config.get("remat_save", ())))  # blocks made by hand may have none
