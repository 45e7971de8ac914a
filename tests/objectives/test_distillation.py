"""Momentum distillation: eq. 7 and the ramp of its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.objectives.distillation import alpha_at, distilled_cross_entropy


@pytest.fixture
def words():
    rng = np.random.default_rng(0)
    logits, teacher = (3 * rng.normal(size=(5, 9)).astype(np.float32) for _ in range(2))
    return jnp.asarray(logits), rng.integers(0, 9, 5), jnp.asarray(teacher)


def equation_7(logits, labels, teacher, alpha):
    """(1 - alpha) CE + alpha KL(teacher || model), with the divergence written out."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(teacher)
    hard = -log_p[jnp.arange(len(labels)), labels]
    return (1 - alpha) * hard + alpha * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equation_7_up_to_the_teachers_entropy(words, alpha):
    logits, labels, teacher = words
    log_q = jax.nn.log_softmax(teacher)
    entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
    np.testing.assert_allclose(distilled_cross_entropy(logits, labels, teacher, alpha),
                               equation_7(*words, alpha) + alpha * entropy, rtol=3e-6)
    ours, paper = (jax.grad(lambda x: jnp.sum(form(x, labels, teacher, alpha)))(logits)
                   for form in (distilled_cross_entropy, equation_7))
    np.testing.assert_allclose(ours, paper, atol=1e-6)


def test_the_teacher_gets_no_gradient(words):
    logits, labels, teacher = words
    grad = jax.grad(lambda t: jnp.sum(distilled_cross_entropy(logits, labels, t, 0.4)))(teacher)
    np.testing.assert_array_equal(grad, 0.0)


def test_alpha_ramps_linearly_and_stays():
    ramp = [float(alpha_at(jnp.int32(step), 0.4, 100)) for step in (0, 25, 50, 100, 1000)]
    np.testing.assert_allclose(ramp, [0.0, 0.1, 0.2, 0.4, 0.4], rtol=1e-6)
    assert float(alpha_at(jnp.int32(0), 0.4, 0)) == pytest.approx(0.4)
