"""The building blocks: hand-written derivatives against automatic ones, dropout, attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.models.layers import (
    Dense,
    Dropout,
    LayerNorm,
    attention_probs,
    gelu,
    padding_bias,
)

RATE = 26 / 256  # what a rate of 0.1 is


def assert_same_derivatives(ours, plain, params, x, rtol=1e-5):
    """Values and gradients of parameters and input, for a random cotangent."""
    weights = jax.random.normal(jax.random.key(9), jax.eval_shape(plain, params, x).shape)

    def run(function):
        return jax.value_and_grad(
            lambda p, x: jnp.sum(weights * function(p, x)), argnums=(0, 1))(params, x)

    for a, b in zip(jax.tree.leaves(run(ours)), jax.tree.leaves(run(plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 5)])
def test_dense(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    layer = Dense(6, jnp.float32)
    params = nn.unbox(layer.init(jax.random.key(1), x)["params"])
    assert params["kernel"].shape == (5, 6)
    params["bias"] = jnp.arange(6.0)
    assert_same_derivatives(lambda p, x: layer.apply({"params": p}, x),
                            lambda p, x: x @ p["kernel"] + p["bias"], params, x)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1.0])
def test_layer_norm(epsilon):
    """Also where the mean is large: the variance must not cancel."""
    x = 100.0 + jax.random.normal(jax.random.key(0), (3, 4, 8))
    layer = LayerNorm(epsilon, jnp.float32)
    params = {"scale": jnp.linspace(0.5, 2, 8), "bias": jnp.arange(8.0)}

    def plain(p, x):
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return p["scale"] * centred / deviation + p["bias"]

    assert_same_derivatives(lambda p, x: layer.apply({"params": p}, x), plain, params, x, 3e-5)


def test_gelu_is_exact():
    """x Phi(x) with the error function; the tanh form is off by up to 5e-4."""
    x = jnp.linspace(-6, 6, 101)
    assert_same_derivatives(lambda _, x: gelu(x), lambda _, x: nn.gelu(x, approximate=False),
                            {}, x)
    assert np.abs(gelu(x) - nn.gelu(x, approximate=True)).max() > 1e-4


def test_half_precision_derivatives_stay_close():
    """bfloat16 products; gradients of parameters are float32 and within 2%."""
    x = jax.random.normal(jax.random.key(0), (64, 16))

    def grads(dtype):
        block = nn.Sequential([Dense(32, dtype), gelu, LayerNorm(1e-6, dtype), Dense(4, dtype)])
        params = block.init(jax.random.key(1), x)
        return jax.grad(lambda p: jnp.mean(jnp.square(
            block.apply(p, x.astype(dtype)).astype(jnp.float32) - 1)))(params)

    for a, b in zip(*(jax.tree.leaves(grads(jnp.dtype(d))) for d in ("float32", "bfloat16"))):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(a).max())


def drop(key, x, rate=0.1, deterministic=False):
    return Dropout(rate).apply({}, x, deterministic, rngs={"dropout": key})


def test_dropout_shares():
    """Zeros within 5 deviations of the rate, overall, per row and per column; the mean stays."""
    x = jnp.ones((400, 250))
    y = np.asarray(drop(jax.random.key(0), x))
    zero = y == 0
    for observed, count in ((zero.mean(), 100_000), (zero.mean(0), 400), (zero.mean(1), 250)):
        assert np.all(np.abs(observed - RATE) < 5 * np.sqrt(RATE * (1 - RATE) / count))
    np.testing.assert_allclose(y[~zero], 1 / (1 - RATE), rtol=1e-6)
    # Neighbours are independent: four elements share a random word.
    for shift in (1, 2, 3, 4):
        both = (zero[:, shift:] & zero[:, :-shift]).mean()
        assert abs(both - RATE**2) < 5 * np.sqrt(RATE**2 / 100_000)


def test_dropout_off():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    for y in (drop(jax.random.key(1), x, deterministic=True), drop(jax.random.key(1), x, rate=0.0)):
        np.testing.assert_array_equal(y, x)
    half = drop(jax.random.key(1), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_the_same_draws_alone_mapped_and_scanned(shape):
    """What a group drops does not depend on what is computed beside it."""
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, *shape))
    alone = jnp.stack([drop(key, one) for key, one in zip(keys, x)])
    mapped = jax.jit(jax.vmap(drop))(keys, x)
    scanned = jax.lax.scan(lambda c, args: (c, drop(*args)), 0, (keys, x))[1]
    np.testing.assert_array_equal(alone, mapped)
    np.testing.assert_array_equal(alone, scanned)
    assert not np.array_equal(alone[0], alone[1])


def test_attention():
    """Rows sum to 1, padding gets nothing, scores are scaled by the root of the head width."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(2, n, 3, 4)), jnp.float32) for n in (5, 6))
    mask = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    probs = np.asarray(attention_probs(q, k, padding_bias(mask)))
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-6)
    assert np.all(probs[1, :, :, 2:] == 0)
    weights = np.exp(np.einsum("qhk,nhk->hqn", q[1], k[1, :2]) / 2)
    np.testing.assert_allclose(probs[1, :, :, :2], weights / weights.sum(-1, keepdims=True),
                               rtol=1e-5)
