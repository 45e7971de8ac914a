"""The building blocks that ViT and BERT share: dense, LayerNorm, GELU, attention, dropout.

Parameters are float32; matrix products run in the module's `dtype`; LayerNorm statistics, softmax
and everything after them run in float32. LayerNorm and the GELUs have hand-written derivatives: the
same values with fewer passes over memory.
"""

from collections.abc import Callable
import contextlib
import contextvars
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from albef_jax.parallel.axes import ROWS, constrain, gathered, is_split, named, platform

Dtype = jnp.dtype
OFFICIAL_STD = 0.02  # BERT's and ViT's choice for width 768
# Collections of variables for those who look at attention maps; see `visible`.
MAPS, OFFSETS = "intermediates", "offsets"
_INIT_STD = contextvars.ContextVar("init_std", default=OFFICIAL_STD)


@contextlib.contextmanager
def initial_std(std):
    """Inside, weights that are drawn by `scaled` initialisers have this deviation, not 0.02.

    Narrow layers shrink their input by 0.02: at width 192 what cross-attention brings in starts
    at a quarter of the official strength.
    """
    token = _INIT_STD.set(std)
    try:
        yield
    finally:
        _INIT_STD.reset(token)


def scaled(init):
    """An initialiser that draws with the deviation 0.02, obeying `initial_std`."""
    return lambda *args: init(*args) * (_INIT_STD.get() / OFFICIAL_STD)


NORMAL = scaled(nn.initializers.normal(OFFICIAL_STD))


@jax.custom_vjp
def written_gradient(x):
    """The identity, whose gradient is written to memory before anything reads it.

    Two products read the gradient of a dense layer's output. Without the barrier XLA fuses the
    element-wise work that makes it into the transposing copy of one of them, and repeats that
    work there in strided order.
    """
    return x


def _written(_, grad):
    # TPUs transpose inside the product, and fuse what makes the gradient into it.
    return (grad if platform() == "tpu" else jax.lax.optimization_barrier(grad),)


written_gradient.defvjp(lambda x: (x, None), _written)


def dense(x, kernel, bias, dtype):
    """`x @ kernel + bias` in `dtype`; kernel `[i, o]` and bias `[o]` are float32."""
    return written_gradient(x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x, scale, bias, epsilon, dtype):
    """LayerNorm over the last axis with float32 statistics; the result has `dtype`."""
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(variance + epsilon)
    normed = centred * rstd
    return (normed * scale + bias).astype(dtype), (normed.astype(x.dtype), rstd, scale)


def _layer_norm_backward(epsilon, dtype, saved, grad):
    normed, rstd, scale = saved
    grad_32, normed_32 = grad.astype(jnp.float32), normed.astype(jnp.float32)
    scaled = grad_32 * scale
    mean = jnp.mean(scaled, axis=-1, keepdims=True)
    along = jnp.mean(scaled * normed_32, axis=-1, keepdims=True)
    grad_x = rstd * (scaled - mean - normed_32 * along)

    def over_rows(t):
        return t.reshape(-1, t.shape[-1]).sum(axis=0)

    return grad_x.astype(normed.dtype), over_rows(grad_32 * normed_32), over_rows(grad_32)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gelu(x):
    """Exact GELU, x Phi(x) with the error function; keeps its derivative for the way back."""
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x):
    cdf = _normal_cdf(x)
    return x * cdf, cdf + x * jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2.0 * math.pi)


gelu.defvjp(_gelu_forward, lambda slope, grad: (slope * grad,))


@jax.custom_vjp
def quick_gelu(x):
    """x sigmoid(1.702 x), CLIP's cheaper GELU; keeps its derivative for the way back."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_forward(x):
    sigmoid = jax.nn.sigmoid(1.702 * x)
    return x * sigmoid, sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))


quick_gelu.defvjp(_quick_gelu_forward, lambda slope, grad: (slope * grad,))


class Dense(nn.Module):
    """Affine layer `[..., i] -> [..., features]`; see `dense`.

    Attributes:
      axes: names of the kernel's axes; see `parallel.axes`.
    """

    features: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = NORMAL
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    axes: tuple[str | None, str | None] = ("embed", None)

    @nn.compact
    def __call__(self, x, parts=1):
        """With `parts`, a list of equal parts of the output."""
        kernel = self.param("kernel", named(self.kernel_init, *self.axes),
                            (x.shape[-1], self.features))
        # A vector of the model's width is too small to be worth gathering.
        bias_axis = None if self.axes[1] == "embed" else self.axes[1]
        bias = self.param("bias", named(self.bias_init, bias_axis), (self.features,))
        kernel = kernel.astype(self.dtype)

        def product(kernel, bias):
            return dense(x, gathered(kernel, *self.axes), bias, self.dtype)

        if parts > 1 and is_split(self.axes[1]):
            # A share of the output as a whole would not be a share of each part.
            return [product(*pair) for pair in zip(jnp.split(kernel, parts, axis=1),
                                                   jnp.split(bias, parts))]
        y = product(kernel, bias)
        return y if parts == 1 else jnp.split(y, parts, axis=-1)


class LayerNorm(nn.Module):
    """LayerNorm with learned scale and bias; see `layer_norm`."""

    epsilon: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


def cheap_keep_mask(key, rate, shape):
    """Bernoulli mask that is True with probability 1 - rate, four elements per random word.

    Threefry is the price of dropout on every backend. One 32-bit word yields four independent
    bytes, so an element costs a quarter of `jax.random.bernoulli`; the rate is therefore a
    multiple of 1/256 (0.1 becomes 26/256).

    Args:
      key: PRNG key (threefry: its draws are the same under vmap and scan).
      rate: probability of False, rounded to a multiple of 1/256. shape: of the mask.
    """
    # Each byte of the words serves a quarter of the first axis: bytes side by side in a last
    # axis of four would take 32 times their size in a TPU's memory.
    drawn = (-(-shape[0] // 4), *shape[1:])
    # The barrier keeps the generator a loop of its own, not repeated in every reader.
    words = jax.lax.optimization_barrier(jax.random.bits(key, drawn, jnp.uint32))
    least = round(rate * 256)
    return jnp.concatenate([(words >> 8 * byte) & 0xFF >= least for byte in range(4)])[:shape[0]]


class Dropout(nn.Module):
    """Inverted dropout; the identity when the rate is 0 or `deterministic`."""

    rate: float

    @property
    def share(self):
        """The rate that `cheap_keep_mask` really applies."""
        return round(self.rate * 256) / 256

    def keep(self, shape, deterministic: bool):
        """What stays of an array, bool; None where everything does."""
        if deterministic or self.share == 0.0:
            return None
        return cheap_keep_mask(self.make_rng("dropout"), self.share, shape)

    def __call__(self, x, deterministic: bool):
        keep = self.keep(x.shape, deterministic)
        if keep is None:
            return x
        return jnp.where(keep, x / (1.0 - self.share), 0.0).astype(x.dtype)


def attention_probs(q_bqhk, k_bnhk, bias=None):
    """Softmax of scaled dot products of queries and keys: float32 `[b, h, q, n]`.

    `bias` is an additive float32 mask that broadcasts to that shape, or None.
    """
    scale = q_bqhk.shape[-1] ** -0.5
    scores = jnp.einsum("bqhk,bnhk->bhqn", q_bqhk * scale, k_bnhk,
                        preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    return jax.nn.softmax(scores, axis=-1)


def visible(module, probs):
    """Attention probabilities of a module, open to inspection; in training the same program.

    Who calls `apply(..., mutable=[MAPS])` finds them in that collection as `probs`; who passes
    zeros in the collection `OFFSETS` can differentiate with respect to them.
    """
    if module.has_variable(OFFSETS, "probs"):
        probs = probs + module.get_variable(OFFSETS, "probs")
    module.sow(MAPS, "probs", probs)
    return probs


def is_looked_into(module):
    """Whether somebody may want the attention maps of a module; see `visible`."""
    return module.is_mutable_collection(MAPS) or module.has_variable(OFFSETS, "probs")


def padding_bias(mask_bl, padded=-10000.0):
    """Additive self-attention mask `[b, 1, 1, l]`: 0 for real tokens, `padded` for padding."""
    return (1.0 - mask_bl.astype(jnp.float32))[:, None, None, :] * padded


class Mlp(nn.Module):
    """Dense, an activation (exact GELU), dense: `[..., d] -> [..., d]`."""

    hidden: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = NORMAL
    activation: Callable = gelu

    @nn.compact
    def __call__(self, x):
        h = Dense(self.hidden, self.dtype, self.kernel_init, axes=("embed", "mlp"), name="fc1")(x)
        h = self.activation(checkpoint_name(h, "mlp"))
        return Dense(x.shape[-1], self.dtype, self.kernel_init, axes=("mlp", "embed"),
                     name="fc2")(h)


class HeadsDense(nn.Module):
    """`parts` projections to heads in one matrix product: `[..., d] -> parts x [..., h, k]`.

    A head is a contiguous block of channels, as in ViT and BERT.
    """

    parts: int
    width: int
    heads: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = NORMAL

    @nn.compact
    def __call__(self, x, joined=False):
        """With `joined`, all parts as the product writes them, `[..., parts * d]`."""
        dense = Dense(self.parts * self.width, self.dtype, self.kernel_init,
                      axes=("embed", "heads"), name="dense")
        if joined:
            y = checkpoint_name(dense(x), "qkv")
            # Of one part, a share of the columns is a share of the heads.
            return constrain(y, *[None] * (y.ndim - 3), ROWS, None,
                             "heads" if self.parts == 1 else None)
        projected = dense(x, self.parts) if self.parts > 1 else [dense(x)]
        heads = [y.reshape(*y.shape[:-1], self.heads, -1) for y in projected]
        return tuple(checkpoint_name(
            constrain(y, *[None] * (y.ndim - 4), ROWS, None, "heads", None), "qkv")
            for y in heads)
