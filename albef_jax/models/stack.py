"""Running layers one after another: unrolled or as a loop, with or without recomputation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from albef_jax.models.layers import MAPS
from albef_jax.parallel.axes import whole

# Activations that can be kept where layers are recomputed, named in layers.py and bert.py.
REMAT_POINTS = ("qkv", "attention", "mlp")


@dataclasses.dataclass(frozen=True)
class Stacking:
    """How a stack of layers is run; the values are the same.

    A layer is a module, or a tuple of modules that are run together. Dropout draws of a scanned
    stack differ from those of an unrolled one.
    """

    scan: bool = False  # one compiled layer in a loop over stacked parameters: compiles sooner
    remat: bool = False  # keep only what enters a layer, compute the rest again on the way back
    save: tuple[str, ...] = ()  # activations that are kept all the same (`REMAT_POINTS`)

    def run(self, layers, x, body):
        """Applies `body(layer, x) -> x` with each of the layers, of one class and size."""
        x = whole(x)
        if len(layers) > 1 and self.scan and not _is_looked_into(layers[0]):
            return self._scan(layers, x, body)
        for layer in layers:
            x = whole(self.one(layer, x, body))
        return x

    def one(self, layer, x, body):
        """`body(layer, x)` of a layer that stands alone, such as a last one of another output."""
        if not self.remat:
            return body(layer, x)
        first, *rest = _modules(layer)
        remat = nn.remat(lambda first, rest, x: body((first, *rest) if rest else first, x),
                         policy=self._policy())
        return remat(first, rest, x)

    def _scan(self, layers, x, body):
        modules = jax.tree.map(lambda module: module.unbind()[0], layers[0])
        params = [jax.tree.map(lambda module: module.variables["params"], layer)
                  for layer in layers]
        keys = [jax.tree.map(_dropout_key, layer) for layer in layers]

        def one(x, layer):
            bound = jax.tree.map(
                lambda module, params, key: module.bind(
                    {"params": params}, rngs=None if key is None else {"dropout": key}),
                modules, *layer)
            return whole(body(bound, x)), None

        if self.remat:
            # Inside a loop nothing can be merged with the way there, and barriers only cost.
            one = jax.checkpoint(one, policy=self._policy(), prevent_cse=False)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, keys))
        return jax.lax.scan(one, x, stacked)[0]

    def _policy(self):
        return jax.checkpoint_policies.save_only_these_names(*self.save)


def _dropout_key(module):
    return module.make_rng("dropout") if module.has_rng("dropout") else None


def _modules(layer):
    return layer if isinstance(layer, tuple) else (layer,)


def _is_looked_into(layer):
    """Whether parameters are made, or attention maps wanted: by layer, so no loop will do."""
    first = _modules(layer)[0]
    return first.is_initializing() or first.is_mutable_collection(MAPS)


def stacking(config):
    """The `Stacking` of a config's `model` block."""
    return Stacking(config.get("scan", False), config.get("remat", False),
                    tuple(config.get("remat_save", ())))  # blocks made by hand may have none
