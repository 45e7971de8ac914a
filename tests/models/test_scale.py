"""SCALE's trunk: recorded outputs, padding in the JCT, the mean as CLS token."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from parity_scale import Case
import pytest

from albef_jax.models.layers import quick_gelu
from albef_jax.models.scale import JCT_ORDER, Scale, with_mean

FORWARD = Path(__file__).parents[1] / "golden" / "scale_forward"


def encoded(case, batch):
    """The trunk on a batch; whole states by letter."""
    return jax.jit(lambda params, batch: case.task.model.apply(
        {"params": params}, batch, method=Scale.encode))(case.state().params, batch)


def recorded(variant):
    """A recorded variant, and its masked batch."""
    case = Case(FORWARD, json.loads((FORWARD / "meta.json").read_text()), variant)
    batch = case.batch()
    draws = jax.tree.map(lambda x: x[0], case.draws())
    return case, case.task.mask({name: jnp.asarray(x) for name, x in batch.items()}, draws)[0]


@pytest.mark.parametrize("variant", ["released", "seed"])
def test_states_are_the_recorded_ones(variant):
    """Of all padded products, the mixed masks of the release included."""
    case, batch = recorded(variant)
    found = encoded(case, batch)
    joint = np.concatenate([found.joint[m] for m in JCT_ORDER], axis=1)
    np.testing.assert_allclose(joint, case.outputs["jct_out"], atol=2e-5)
    for m in JCT_ORDER:
        np.testing.assert_allclose(found.unimodal[m], case.outputs[f"uni_{m}"], atol=1e-5)


@pytest.mark.slow
def test_padding_is_of_the_own_product_or_mixed():
    """A product alone is itself with its own mask, and not with the release's in a batch."""
    for variant, same in (("released_maskfix", True), ("released", False)):
        case, batch = recorded(variant)
        together = encoded(case, batch).joint["t"][1]
        alone = encoded(case, {name: x[1:2] for name, x in batch.items()}).joint["t"][0]
        assert np.allclose(together, alone, atol=1e-5) == same


def test_the_cls_token_is_the_mean_of_what_is_there():
    features = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(with_mean(features, mask)[:, 0], [[1, 2], [0, 0]])
    half = with_mean(features.astype(jnp.float16), mask)
    assert half.dtype == jnp.float32 and half.shape == (2, 4, 2)


def test_quick_gelu_and_its_derivative():
    x = jnp.linspace(-6, 6, 25)
    np.testing.assert_allclose(quick_gelu(x), x / (1 + np.exp(-1.702 * x)), rtol=1e-6)
    written_out = jax.vmap(jax.grad(lambda x: x * jax.nn.sigmoid(1.702 * x)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(quick_gelu))(x), written_out, rtol=1e-5)
