"""Attention whose scores never reach main memory: our kernels on TPUs, cuDNN's on GPUs; exact.

Plain attention writes scores and probabilities `[b, h, m, n]` to memory and reads them again, and
copies queries, keys and values apart; at 257 tokens that is nine tenths of the bytes of a ViT's
attention. The kernels hold some heads of an image at a time, read projections as they were written
(`[b, n, 3d]`), and compute the scores again on the way back. This is not FlashAttention: a row of
scores is short enough to be held whole, so there is no running softmax.
"""

import functools
import sys

import jax
import jax.experimental.pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from albef_jax.errors import first_line
from albef_jax.parallel.axes import is_split, over_rows, platform

CHOICES = ("auto", "plain", "fused")
LANES = 128  # of a TPU's vectors: where a block of columns has to begin
BLOCK_BYTES = 8 * 2**20  # of the columns that a kernel reads and writes, two blocks of each


def fuses(choice: str, dtype, dropout: float = 0.0) -> bool:
    """Whether attention is computed by `fused_attention`.

    Args:
      choice: of `CHOICES`. 'auto': in a training step on accelerators whose heads are not split.
      dtype: of the products. dropout: of probabilities. cuDNN has neither float32 nor ours.
    """
    where = platform()
    if choice == "plain" or (choice == "auto" and is_split("heads")):
        return False
    if where == "gpu":
        return dtype == jnp.bfloat16 and dropout == 0.0 and cudnn_differentiates()
    return choice == "fused" or where == "tpu"


@functools.cache
def cudnn_differentiates() -> bool:
    """Whether cuDNN's attention has gradients over groups on this machine; says so if not.

    Old GPUs, missing libraries and some versions of JAX (jax-ml/jax#38495) fail.
    """
    def loss(qkv_bn3d):
        return jnp.sum(jnp.square(_cudnn((qkv_bn3d,), 1).astype(jnp.float32)))

    try:
        jax.block_until_ready(jax.jit(jax.vmap(jax.grad(loss)))(
            jnp.zeros((2, 1, 257, 3 * 64), jnp.bfloat16)))
    except Exception as error:  # of any library in between
        print("attention: plain, as cuDNN's does not run here "
              f"({type(error).__name__}: {first_line(error)})", file=sys.stderr)
        return False
    return True


def fused_attention(sources, keep_bhmn, heads, rate=0.0):
    """Softmax attention of queries to keys, `heads` of them side by side in the last axis.

    Products have the dtype of the input, scores and softmax are float32, as in
    `layers.attention_probs`. Only the rows may be spread over devices.

    Args:
      sources: what queries, keys and values stand in side by side: `[b, n, 3d]` alone, or queries
        `[b, m, d]` and the other two `[b, n, 2d]`.
      keep_bhmn: bool, which probabilities stay, or None. rate: share of those that do not.

    Returns:
      `[b, m, d]`.
    """
    if platform() == "gpu":
        return over_rows(lambda *sources: _cudnn(sources, heads), *sources)
    if keep_bhmn is not None:
        keep_bhmn = keep_bhmn.astype(jnp.int8)
    return _attention(tuple(sources), keep_bhmn, heads, rate)


def _cudnn(sources, heads, implementation="cudnn"):
    """What stands side by side in `sources`, through cuDNN: `[b, m, d]`."""
    parts = [part for source, count in zip(sources, (3,) if len(sources) == 1 else (1, 2))
             for part in jnp.split(source, count, axis=-1)]
    q, k, v = (part.reshape(*part.shape[:2], heads, -1) for part in parts)
    lengths = {}
    if q.shape[1] % 2 or k.shape[1] % 2:  # JAX asks cuDNN for gradients of even lengths alone
        lengths = {f"{name}_seq_lengths": _length_of_each(x)
                   for name, x in (("query", q), ("key_value", k))}
    y = jax.nn.dot_product_attention(*map(_even, (q, k, v)), implementation=implementation,
                                     **lengths)
    return y[:, :q.shape[1]].reshape(*q.shape[:2], -1)


def _length_of_each(x_bnhk):
    """n of every row, int32 `[b]`, which inside a vmap over groups has their axis, as `x` does.

    JAX before 0.11 does not give it to what is the same in all of them.
    """
    n = x_bnhk.shape[1]
    return jnp.where(x_bnhk[:, 0, 0, 0] > 0, n, n).astype(jnp.int32)


def _even(x_bnhk):
    """With a token of zeros at the end where their number is odd."""
    return jnp.pad(x_bnhk, ((0, 0), (0, x_bnhk.shape[1] % 2), (0, 0), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attention(sources, keep_bhmn, heads, rate):
    return _call(_forward_kernel, sources, (), keep_bhmn, heads, rate)[0]


def _attention_forward(sources, keep_bhmn, heads, rate):
    return _attention(sources, keep_bhmn, heads, rate), (sources, keep_bhmn)


def _attention_backward(heads, rate, saved, grad_bmd):
    sources, keep_bhmn = saved
    return _call(_backward_kernel, sources, (grad_bmd,), keep_bhmn, heads, rate), None


_attention.defvjp(_attention_forward, _attention_backward)


def _call(kernel, sources, grad, keep_bhmn, heads, rate):
    """Runs a kernel on every device for its rows; a tuple of results."""
    keep = () if keep_bhmn is None else (keep_bhmn,)
    call = functools.partial(_kernel_call, kernel, len(sources), len(grad), heads, rate)
    return over_rows(call, *sources, *grad, *keep)


def _kernel_call(kernel, count, backward, heads, rate, *arrays):
    """A kernel over images and blocks of heads.

    Args:
      count, backward: how many of `arrays` are sources, and gradients of the result; what is left
        says which probabilities stay.
    """
    sources, grad, keep = arrays[:count], arrays[count:count + backward], arrays[count + backward:]
    b, m, n = len(sources[0]), sources[0].shape[1], sources[-1].shape[1]
    width = sum(source.shape[-1] for source in sources) // 3
    channels, dtype = width // heads, sources[0].dtype
    # Rows of queries and of the result, of keys and of values; on the way back of all gradients.
    rows = 2 * m + 2 * n if not backward else 3 * m + 4 * n
    held = _heads_held(heads, channels, 2 * rows * dtype.itemsize)
    places = heads // held

    def columns(length, part=0):
        """A block of columns of a part of an array, or of the part that the grid is at."""
        return pl.BlockSpec((1, length, held * channels), lambda i, j, *turn: (
            i, 0, (turn[0] if part is None else part) * places + j))

    # Of queries, keys and values: the source, and which of the parts side by side in it.
    parts = [(0, 0), (0, 1), (0, 2)] if count == 1 else [(0, 0), (1, 0), (1, 1)]
    if held * channels % LANES:  # parts do not begin where a block may: sources are read whole
        read, waiting = sources, 0
        specs = outs = [pl.BlockSpec((1, *source.shape[1:]), lambda i, j: (i, 0, 0))
                        for source in sources]
        parts = [(source, part * width) for source, part in parts]
    else:
        # The gradients of what stands side by side go to several places of one array, so that its
        # blocks take turns; all are computed in the first.
        read, waiting = [sources[source] for source, _ in parts], 3 - count if backward else 0
        specs = [columns(sources[source].shape[1], part) for source, part in parts]
        outs = [*map(columns, [m] * (count - 1)), columns(n, None)]
        parts = [(number, 0) for number in range(3)]
    specs = [*specs, *(columns(m) for _ in grad),
             *(pl.BlockSpec((1, held, m, n), lambda i, j, *_: (i, j, 0, 0)) for _ in keep)]
    shapes = [source.shape for source in sources] if backward else [(b, m, width)]
    products = 5 if backward else 2
    return tuple(pl.pallas_call(
        functools.partial(kernel, parts=parts, heads=held, rate=rate,
                          **({"waiting": waiting} if backward else {})),
        grid=(b, places, *([1 + waiting] if waiting else ())),
        in_specs=specs, out_specs=outs if backward else [columns(m)],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape in shapes],
        scratch_shapes=[pltpu.VMEM((waiting, n, held * channels), dtype)] if waiting else [],
        cost_estimate=pl.CostEstimate(
            flops=products * 2 * b * m * n * width, transcendentals=b * heads * m * n,
            bytes_accessed=b * (rows * width * dtype.itemsize + len(keep) * heads * m * n)),
        interpret=platform() != "tpu", name=kernel.__name__.strip("_"),
    )(*read, *grad, *keep))


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


def _probs(q_mk, k_nk):
    """Softmax of the scores, float32 `[m, n]`."""
    scores = _dot(q_mk, k_nk, (1, 1))
    scores = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return scores / jnp.sum(scores, axis=-1, keepdims=True)


def _heads_of(parts, refs, heads, channels):
    """Yields of each head its number, its columns, and its queries, keys and values.

    Args:
      parts: of these the number in `refs` and the first column.
    """
    for head in range(heads):
        yield head, slice(head * channels, (head + 1) * channels), [
            refs[number][0, :, first + head * channels:first + (head + 1) * channels]
            for number, first in parts]


def _scaled(q_mk):
    return q_mk * q_mk.shape[-1] ** -0.5


def _dropped(values_mn, keep_ref, head, rate):
    """Dropout; without a mask the identity."""
    if not keep_ref:
        return values_mn
    return jnp.where(keep_ref[0][0, head] != 0, values_mn / (1.0 - rate), 0.0)


def _forward_kernel(*refs, parts, heads, rate):
    count = 1 + max(number for number, _ in parts)
    sources, keep_ref, out_ref = refs[:count], refs[count:-1], refs[-1]
    for head, own, (q, k, v) in _heads_of(parts, sources, heads, out_ref.shape[-1] // heads):
        probs = _dropped(_probs(_scaled(q), k), keep_ref, head, rate).astype(v.dtype)
        out_ref[0, :, own] = _dot(probs, v, (1, 0)).astype(out_ref.dtype)


def _backward_kernel(*refs, parts, waiting, heads, rate):
    """Gradients of queries, keys and values; the last `waiting` of them wait for their turn."""
    count = 1 + max(number for number, _ in parts)
    sources, (grad_ref, *refs) = refs[:count], refs[count:]
    keep_ref = [ref for ref in refs if len(ref.shape) == 4]
    refs = refs[len(keep_ref):]
    if waiting:
        *outs, later = refs
        targets = [(ref.at[0], 0) for ref in (*outs, *(later.at[i:i + 1] for i in range(waiting)))]
    else:
        targets = [(refs[number].at[0], first) for number, first in parts]

    def compute():
        channels = grad_ref.shape[-1] // heads
        for head, own, (q, k, v) in _heads_of(parts, sources, heads, channels):
            q, grad = _scaled(q), grad_ref[0, :, own]
            probs = _probs(q, k)
            grad_probs = _dropped(_dot(grad, v, (1, 1)), keep_ref, head, rate)
            along = jnp.sum(probs * grad_probs, axis=-1, keepdims=True)
            grad_scores = (probs * (grad_probs - along)).astype(q.dtype)
            dropped = _dropped(probs, keep_ref, head, rate).astype(v.dtype)
            for (target, first), gradient in zip(targets, (
                    _scaled(_dot(grad_scores, k, (1, 0))), _dot(grad_scores, q, (0, 0)),
                    _dot(dropped, grad, (0, 0)))):
                own = slice(first + head * channels, first + (head + 1) * channels)
                target[:, own] = gradient.astype(target.dtype)

    if not waiting:
        compute()
        return
    turn = pl.program_id(2)
    pl.when(turn == 0)(compute)

    @pl.when(turn > 0)
    def _():
        outs[-1][0] = later[turn - 1]
