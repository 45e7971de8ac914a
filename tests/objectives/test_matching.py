"""ITM: who is drawn as a negative, and rows that have none.

Frequencies are held against 5 standard deviations of their binomial.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.objectives.matching import (
    has_negative,
    itm_accuracy,
    itm_loss,
    knowing_nothing,
    negative_probabilities,
    random_share_at,
    sample_negatives,
)

DRAWS = 20_000


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 5)) * 2, jnp.float32)


def frequencies(logits, positives, random_share):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    drawn = jax.jit(jax.vmap(
        lambda key: sample_negatives(key, logits, positives, random_share)))(keys)
    return np.stack([(np.asarray(drawn) == column).mean(0) for column in range(5)], axis=1)


def assert_frequencies(observed, expected):
    assert np.all(np.abs(observed - expected)
                  <= 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-9)


def test_hard_negatives_follow_the_similarity(logits):
    """Softmax over the others; a more similar one is drawn more often, the partner never."""
    positives = np.eye(5, dtype=bool)
    weights = np.where(positives, 0, np.exp(np.float64(logits)))
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(negative_probabilities(logits, positives), expected, rtol=1e-5)
    observed = frequencies(logits, positives, 0.0)
    assert_frequencies(observed, expected)
    assert np.all(np.diag(observed) == 0)
    for row in range(5):
        others = [column for column in range(5) if column != row]
        best = max(others, key=lambda column: logits[row, column])
        assert np.argmax(observed[row]) == best


def test_random_negatives_are_uniform(logits):
    assert_frequencies(frequencies(logits, np.eye(5, dtype=bool), 1.0), (1 - np.eye(5)) / 4)


def test_a_share_of_random_negatives(logits):
    """Three in ten uniform, the rest by similarity."""
    positives = np.eye(5, dtype=bool)
    hard, uniform = (negative_probabilities(logits, positives, share) for share in (0.0, 1.0))
    expected = 0.7 * np.asarray(hard, float) + 0.3 * np.asarray(uniform, float)
    np.testing.assert_allclose(negative_probabilities(logits, positives, 0.3), expected, atol=1e-7)
    assert_frequencies(frequencies(logits, positives, 0.3), expected)


def test_the_share_falls_to_its_end_and_stays_there():
    shares = [float(random_share_at(step, 0.25, 100)) for step in (0, 50, 75, 100, 500)]
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.25, 0.25, 0.25])
    assert random_share_at(7, 0.25, 0) == 0.25


@pytest.mark.parametrize("random_share", [0.0, 0.5, 1.0])
def test_captions_of_the_same_image_are_never_drawn(logits, random_share):
    ids = np.array([1, 2, 1, 2, 3])
    positives = ids[:, None] == ids[None]
    observed = frequencies(logits, positives, random_share)
    assert np.all(observed[positives] == 0)
    np.testing.assert_allclose(observed.sum(-1), 1.0)


def test_rows_without_a_negative_weigh_nothing():
    """Row 2 is a positive of all: its two negative pairs do not count."""
    positives = jnp.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    valid = has_negative(positives)
    np.testing.assert_array_equal(valid, [1, 1, 0])
    drawn = sample_negatives(jax.random.key(0), jnp.zeros((3, 3)), positives)
    assert np.all((drawn >= 0) & (drawn < 3))
    logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [9.0, -9.0]])
    loss, grad = jax.value_and_grad(itm_loss)(logits, jnp.array([1, 0, 1]), valid)
    expected = (np.log(1 + np.exp(-1)) + np.log(1 + np.exp(-2))) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(grad[2], 0.0)
    assert itm_accuracy(logits, jnp.array([1, 1, 1]), valid) == 0.5


@pytest.mark.parametrize("weight, loss, accuracy", [
    (1.0, np.log(3) - 2 / 3 * np.log(2), 2 / 3), (2.0, np.log(2), 0.5), (4.0, 0.6365, 2 / 3)])
def test_knowing_nothing_is_the_best_constant_answer(weight, loss, accuracy):
    assert knowing_nothing(weight) == (pytest.approx(loss, abs=1e-4), pytest.approx(accuracy))
    labels, weights = jnp.array([1, 0, 0]), jnp.array([weight, 1.0, 1.0])
    losses = [float(itm_loss(jnp.array([[0.0, x]] * 3), labels, weights))
              for x in np.linspace(-2, 2, 401)]
    assert min(losses) == pytest.approx(loss, abs=1e-4)
