"""Texts without their padding: what is computed word by word is computed of real words only.

A caption of twelve tokens in a row of thirty spends more than half of its products on padding.
Packed, the tokens of all texts of a group stand in one list of a fixed length, in which dense
layers, norms and dropout run; attention takes them apart again, and padding it hides anyway.
"""

import math

from flax import struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Packing:
    """Where the real tokens of texts `[..., l]` stand in a list of `t`, and where they come from.

    What does not fit is left out: see `overflow`.
    """

    sources_t: jax.Array  # int32: position in `[n * l]`, or n * l where the list has no token
    places_nl: jax.Array  # int32 `[n * l]`: position in the list, or t
    shape: tuple[int, ...] = struct.field(pytree_node=False)  # `[..., l]`

    @classmethod
    def of(cls, mask_nl, share: float):
        """Of a mask, 1 for real tokens; the list holds `share` of the positions."""
        n_l, real = mask_nl.size, mask_nl.reshape(-1) > 0
        t = budget(n_l, share)
        (sources_t,) = jnp.nonzero(real, size=t, fill_value=n_l)
        places_nl = jnp.where(real, jnp.cumsum(real) - 1, t)
        return cls(sources_t.astype(jnp.int32), jnp.minimum(places_nl, t).astype(jnp.int32),
                   mask_nl.shape)

    def pack(self, x):
        """`[..., d]` of all positions -> `[t, d]` of the real tokens."""
        return _taken(x.reshape(-1, x.shape[-1]), self.sources_t, self.places_nl)

    def unpack(self, x_td):
        """`[t, d]` -> `[..., l, d]`, zeros for what is no token."""
        return _taken(x_td, self.places_nl, self.sources_t).reshape(*self.shape, x_td.shape[-1])


def budget(positions: int, share: float) -> int:
    """Length of the list for so many positions."""
    return min(positions, math.ceil(share * positions))


def overflow(mask_nl, share: float):
    """How many real tokens do not fit, float32; 0 where everything is computed."""
    if not share:
        return jnp.zeros(())
    real = jnp.sum(mask_nl > 0).astype(jnp.float32)
    return jnp.maximum(real - budget(mask_nl.size, share), 0.0)


@jax.custom_vjp
def _taken(x_rd, rows, back):
    """Rows of an array, zeros for rows that it does not have; `back` is the way back.

    Every row is taken at most once, so that the gradient is taken too, and not added up.
    """
    return x_rd.at[rows].get(mode="fill", fill_value=0)


_taken.defvjp(lambda x, rows, back: (_taken(x, rows, back), (rows, back)),
              lambda saved, grad: (_taken(grad, saved[1], saved[0]), None, None))
