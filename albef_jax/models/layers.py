"""The building blocks that ViT and BERT share: dense projections, attention, MLP, dropout.

Parameters are float32; matrix products run in the module's `dtype`; LayerNorm, softmax and
everything after them run in float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

Dtype = jnp.dtype
NORMAL_002 = nn.initializers.normal(0.02)


def cheap_keep_mask(key, rate, shape):
    """Bernoulli mask that is True with probability 1 - rate, four elements per random word.

    Threefry is the price of dropout on every backend. One 32-bit word yields four independent
    bytes, so an element costs a quarter of `jax.random.bernoulli`; the rate is therefore a
    multiple of 1/256 (0.1 becomes 26/256).

    Args:
      key: PRNG key (threefry: its draws are the same under vmap and scan).
      rate: probability of False, quantised by `quantised_rate`.
      shape: shape of the mask.

    Returns:
      bool array of `shape`.
    """
    size = functools.reduce(lambda a, b: a * b, shape, 1)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    as_bytes = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size]
    return (as_bytes >= round(rate * 256)).reshape(shape)


def quantised_rate(rate):
    """The dropout rate that `cheap_keep_mask` really applies: a multiple of 1/256."""
    return round(rate * 256) / 256


class Dropout(nn.Module):
    """Inverted dropout; the identity when the rate is 0 or `deterministic`."""

    rate: float

    @nn.compact
    def __call__(self, x, deterministic: bool):
        rate = quantised_rate(self.rate)
        if deterministic or rate == 0.0:
            return x
        keep = cheap_keep_mask(self.make_rng("dropout"), rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def attention_probs(q_bqhk, k_bnhk, bias=None):
    """Softmax of scaled dot products, in float32.

    Args:
      q_bqhk: queries `[b, q, h, k]`.
      k_bnhk: keys `[b, n, h, k]`.
      bias: additive mask that broadcasts to `[b, h, q, n]`, float32, or None.

    Returns:
      `[b, h, q, n]` float32, rows sum to 1.
    """
    scale = q_bqhk.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bqhk,bnhk->bhqn", q_bqhk * scale, k_bnhk, preferred_element_type=jnp.float32
    )
    if bias is not None:
        scores = scores + bias
    return jax.nn.softmax(scores, axis=-1)


def padding_bias(mask_bl):
    """Additive self-attention mask `[b, 1, 1, l]`: 0 for real tokens, -10000 for padding."""
    return (1.0 - mask_bl.astype(jnp.float32))[:, None, None, :] * -10000.0


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, dense: `[..., d] -> [..., d]`."""

    hidden: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = NORMAL_002

    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        h = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
        return dense(x.shape[-1], name="fc2")(h)


class HeadsDense(nn.Module):
    """`parts` projections to heads in one matrix product: `[..., d] -> parts x [..., h, k]`.

    A head is a contiguous block of channels, as in ViT and BERT.
    """

    parts: int
    width: int
    heads: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = NORMAL_002

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(
            self.parts * self.width, dtype=self.dtype, kernel_init=self.kernel_init, name="dense"
        )(x)
        y = y.reshape(*x.shape[:-1], self.parts, self.heads, self.width // self.heads)
        return tuple(y[..., part, :, :] for part in range(self.parts))
