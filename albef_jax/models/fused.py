"""Self-attention whose scores never reach main memory: kernels for TPU and GPU, exact.

Plain attention writes scores and probabilities `[b, h, n, n]` to memory and reads them again, and
copies queries, keys and values apart; at 257 tokens that is nine tenths of the bytes of a ViT's
attention. The TPU kernel holds some heads of an image at a time, reads the projection `[b, n, 3d]`
as it was written, and computes the scores again on the way back. It is not FlashAttention: a row
of scores is short enough to be held whole, so there is no running softmax.
"""

import functools

import jax
import jax.experimental.pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from albef_jax.parallel.axes import is_split, over_rows, platform

CHOICES = ("auto", "plain", "fused")
LANES = 128  # of a TPU's vectors: where a block of columns has to begin
BLOCK_BYTES = 8 * 2**20  # of the blocks that a TPU kernel reads and writes, two of each


def fuses(choice: str) -> bool:
    """Whether self-attention without a mask is computed by `fused_attention`.

    Args:
      choice: of `CHOICES`. 'auto': inside a training step for TPUs, whose heads are not split.
    """
    if choice == "fused":
        return True
    return choice == "auto" and platform() == "tpu" and not is_split("heads")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def fused_attention(qkv_bn3d, heads):
    """Softmax attention of every token to all: queries, keys, values `[b, n, 3d]` -> `[b, n, d]`.

    Products have the dtype of the input, scores and softmax are float32, as in
    `layers.attention_probs`. Only the rows may be spread over devices. `heads`: how many.
    """
    return over_rows(functools.partial(_call, _forward_kernel, heads, 1), qkv_bn3d)


def _attention_forward(qkv_bn3d, heads):
    return fused_attention(qkv_bn3d, heads), qkv_bn3d


def _attention_backward(heads, qkv_bn3d, grad_bnd):
    call = functools.partial(_call, _backward_kernel, heads, 3)
    return (over_rows(call, qkv_bn3d, grad_bnd),)


fused_attention.defvjp(_attention_forward, _attention_backward)


def _call(kernel, heads, outputs, qkv_bn3d, *grad_bnd):
    """Runs a kernel over images and blocks of heads; the result is `[b, n, outputs * d]`."""
    b, n, columns = qkv_bn3d.shape
    width, size = columns // 3, qkv_bn3d.dtype.itemsize
    # Queries, keys, values and the result, and on the way back the gradients of all.
    blocks = 4 if outputs == 1 else 7
    held = _heads_held(heads, width // heads, 2 * blocks * n * size)
    places = heads // held
    block = (1, n, held * width // heads)
    products = 2 if outputs == 1 else 5
    kernel = functools.partial(kernel, heads=held)

    def columns_from(start):
        return pl.BlockSpec(block, lambda i, j, *_: (i, 0, start + j))

    # The three gradients go to three places of one array, so that a block of them is visited
    # three times; it is computed at the first.
    grid = (b, places, *((3,) if outputs == 3 else ()))
    return pl.pallas_call(
        kernel, grid=grid,
        in_specs=[*(columns_from(part * places) for part in range(3)),
                  *(columns_from(0) for _ in grad_bnd)],
        out_specs=pl.BlockSpec(block, lambda i, j, part=0: (i, 0, part * places + j)),
        out_shape=jax.ShapeDtypeStruct((b, n, outputs * width), qkv_bn3d.dtype),
        scratch_shapes=[pltpu.VMEM((2, *block[1:]), qkv_bn3d.dtype)] if outputs == 3 else [],
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * n * n * width, transcendentals=b * heads * n * n,
            bytes_accessed=size * b * n * width * blocks),
        interpret=platform() != "tpu",
        name=kernel.func.__name__.strip("_"),
    )(qkv_bn3d, qkv_bn3d, qkv_bn3d, *grad_bnd)


def _heads_held(heads, channels, column_bytes):
    """How many heads a kernel holds at a time: as many as there is room for, on whole lanes."""
    fitting = [held for held in range(1, heads + 1)
               if heads % held == 0 and held * channels % LANES == 0]
    small = [held for held in fitting if held * channels * column_bytes <= BLOCK_BYTES]
    return max(small) if small else min(fitting, default=heads)


def _dot(a, b, contracted):
    """A product over an axis of each, float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=exact, preferred_element_type=jnp.float32)


def _probs(q_nk, k_nk):
    """Softmax of the scores, float32 `[n, n]`."""
    scores = _dot(q_nk, k_nk, (1, 1))
    scores = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return scores / jnp.sum(scores, axis=-1, keepdims=True)


def _channels(ref, heads):
    """The columns of each head."""
    width = ref.shape[-1] // heads
    return [slice(head * width, (head + 1) * width) for head in range(heads)]


def _scaled(q_nk):
    return q_nk * q_nk.shape[-1] ** -0.5


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, heads):
    for own in _channels(out_ref, heads):
        v = v_ref[0, :, own]
        probs = _probs(_scaled(q_ref[0, :, own]), k_ref[0, :, own]).astype(v.dtype)
        out_ref[0, :, own] = _dot(probs, v, (1, 0)).astype(out_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, grad_ref, out_ref, later_ref, *, heads):
    """Gradients of queries, keys and values; the last two wait in `later_ref` for their turn."""
    part = pl.program_id(2)

    @pl.when(part == 0)
    def _():
        for own in _channels(out_ref, heads):
            q, k, v, grad = (ref[0, :, own] for ref in (q_ref, k_ref, v_ref, grad_ref))
            q = _scaled(q)
            probs = _probs(q, k)
            grad_probs = _dot(grad, v, (1, 1))
            along = jnp.sum(probs * grad_probs, axis=-1, keepdims=True)
            grad_scores = (probs * (grad_probs - along)).astype(q.dtype)
            out_ref[0, :, own] = _scaled(_dot(grad_scores, k, (1, 0))).astype(out_ref.dtype)
            later_ref[0, :, own] = _dot(grad_scores, q, (0, 0)).astype(out_ref.dtype)
            later_ref[1, :, own] = _dot(probs.astype(v.dtype), grad, (0, 0)).astype(out_ref.dtype)

    @pl.when(part > 0)
    def _():
        out_ref[0] = later_ref[part - 1]
