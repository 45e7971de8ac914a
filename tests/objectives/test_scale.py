"""Scores of modalities, contrast of pairs, masked entities and features.

Recorded values are in the golden scale_scores and scale_masking (tests/test_parity.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.objectives.masking import (
    FeatureDraws,
    draw_features,
    inner_words,
    mask_features,
)
from albef_jax.objectives.scale import (
    EntityDraws,
    draw_entities,
    draw_kept,
    harmonised_scores,
    mask_entities,
    pair_losses,
    squared_error,
)

RNG = np.random.default_rng(0)


def features(b=6, m=3, p=7):
    return jnp.asarray(RNG.normal(size=(b, m, p)), jnp.float32)


def nt_xent(one, two, temperature, weight_b):
    """The loss of one pair written out, in float64."""
    rows = np.concatenate([np.asarray(x, np.float64) for x in (one, two)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    n, losses = len(one), []
    for i in range(2 * n):
        logits = weight_b[i % n] * (rows @ rows[i]) / temperature
        others = np.delete(logits, i)
        losses.append(np.log(np.sum(np.exp(others))) - logits[(i + n) % (2 * n)])
    return np.mean(losses)


@pytest.mark.parametrize("mode", ["logit", "off"])
def test_every_pair_is_nt_xent(mode):
    x = features()
    scores = harmonised_scores(x).normalised
    losses = pair_losses(x, scores, 0.3, mode)
    for loss, (i, j) in zip(losses, ((0, 1), (0, 2), (1, 2)), strict=True):
        weight = np.asarray(scores)[:, i, j] if mode == "logit" else np.ones(len(x))
        np.testing.assert_allclose(loss, nt_xent(x[:, i], x[:, j], 0.3, weight), rtol=1e-5)


def test_scores_may_weight_losses_instead():
    """A score of 0 takes a product's anchors out; scores of 1 change nothing."""
    x = features(b=4, m=2)
    ones = jnp.ones((4, 2, 2))
    np.testing.assert_allclose(pair_losses(x, ones, 0.5, "loss"), pair_losses(x, ones, 0.5, "off"),
                               rtol=1e-6)
    none = pair_losses(x, jnp.zeros((4, 2, 2)), 0.5, "loss")
    np.testing.assert_array_equal(none, 0.0)
    flat = pair_losses(x, jnp.zeros((4, 2, 2)), 0.5, "logit")
    np.testing.assert_allclose(flat, np.log(2 * 4 - 1), rtol=1e-6)


def test_examples_that_lack_one_of_a_pair_are_not_compared():
    """The loss of a pair is that of the examples with both, whatever the others hold."""
    x = features()
    present = jnp.array([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
    scores = jnp.asarray(RNG.uniform(0.1, 1, (6, 3, 3)), jnp.float32)
    losses = pair_losses(x, scores, 0.3, "logit", present)
    for loss, (i, j) in zip(losses, ((0, 1), (0, 2), (1, 2)), strict=True):
        both = np.asarray(present[:, i] & present[:, j])
        np.testing.assert_allclose(loss, nt_xent(
            x[both, i], x[both, j], 0.3, np.asarray(scores)[both, i, j]), rtol=1e-5)
    lonely = pair_losses(x, scores, 0.3, "logit", present.at[:, 1].set(False))
    assert lonely[0] == lonely[2] == 0 and lonely[1] == pytest.approx(float(losses[1]))


def test_scores_of_equal_features_and_of_none():
    """Equal: 1 / sqrt(m) everywhere. A zero row: zeros, and no gradient, where 0 / 0 lurks."""
    same = jnp.broadcast_to(features(2, 1), (2, 3, 7))
    np.testing.assert_allclose(harmonised_scores(same).normalised, 3**-0.5, rtol=1e-5)
    x = features(2).at[0, 1].set(0.0)
    scores, grad = jax.value_and_grad(lambda x: jnp.sum(harmonised_scores(x).normalised**3))(x)
    assert np.isfinite(scores) and np.all(np.isfinite(grad)) and np.max(np.abs(grad)) < 1e3
    np.testing.assert_array_equal(grad[0, 1], 0.0)
    zero = harmonised_scores(x).normalised[0]
    np.testing.assert_array_equal(zero[1], 0.0)
    np.testing.assert_array_equal(zero[:, 1], 0.0)
    np.testing.assert_allclose(np.linalg.norm(zero[0]), 1.0, rtol=1e-6)


def test_what_is_missing_scores_nothing():
    """The others score as if there were no such modality."""
    x, present = features(), jnp.array([True, False, True])
    scores = harmonised_scores(x, jnp.broadcast_to(present, (6, 3)))
    alone = harmonised_scores(x[:, np.array([0, 2])])
    for ours, expected in zip(scores, alone):
        np.testing.assert_allclose(ours[:, ::2, ::2], expected, rtol=1e-5)
        np.testing.assert_array_equal(ours[:, 1], 0.0)
        np.testing.assert_array_equal(ours[:, :, 1], 0.0)


def test_without_row_norm_the_scores_are_those_of_the_paper():
    scores = harmonised_scores(features(), row_norm=False)
    np.testing.assert_array_equal(scores.normalised, scores.harmonised)


def test_entities_are_masked_whole():
    """Pair 0 its value of two words, pair 1 nothing, pair 2 its property; cut after it."""
    ids = jnp.array([[2, 10, 11, 12, 20, 21, 30, 31, 3]])
    entity = jnp.array([[0, 1, 2, 2, 3, 4, 5, 5, 0]])
    draws = EntityDraws(jnp.array([[True, False, True]]), jnp.array([[False, True, True]]))
    masked, predicted = mask_entities(ids, entity, draws, 4)
    np.testing.assert_array_equal(masked, [[2, 10, 4, 4, 20, 21, 4, 4, 3]])
    np.testing.assert_array_equal(predicted[0], [0, 0, 1, 1, 0, 0, 1, 1, 0])


def test_features_that_are_masked():
    """Padding is never predicted; a drawn one that is not zeroed is predicted all the same."""
    x = jnp.arange(1.0, 9.0).reshape(1, 4, 2)
    draws = FeatureDraws(jnp.array([[True, True, False, True]]),
                         jnp.array([[True, False, True, True]]))
    masked, predicted = mask_features(x, jnp.array([[1, 1, 1, 0]]), draws)
    np.testing.assert_array_equal(masked[0, :, 0], [0, 3, 5, 7])
    np.testing.assert_array_equal(predicted[0], [1, 1, 0, 0])


def test_shares_of_what_is_drawn():
    chosen, zeroed = draw_features(jax.random.key(0), (400, 36), 0.15, 0.9)
    assert np.mean(chosen) == pytest.approx(0.15, abs=0.01)
    assert np.mean(zeroed) == pytest.approx(0.9, abs=0.01)
    pairs, halves = draw_entities(jax.random.key(1), (400, 36), 0.15)
    assert np.mean(pairs) == pytest.approx(0.15, abs=0.01)
    assert np.mean(halves) == pytest.approx(0.5, abs=0.02)


def test_inner_words():
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(inner_words(mask), [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0],
                                                      [0, 0, 0, 0]])


def test_squared_error_of_nothing_is_zero():
    x, target = features(2, 3, 4), features(2, 3, 4)
    none = jnp.zeros((2, 3), bool)
    assert squared_error(x, target, none) == 0.0
    some = none.at[0, 1].set(True).at[1, 2].set(True)
    each = np.mean((np.asarray(x) - np.asarray(target))[np.asarray(some)]**2, axis=-1)
    assert squared_error(x, target, some) == pytest.approx(np.mean(each), rel=1e-5)
    weighted = squared_error(x, target, some, jnp.array([3.0, 1.0]))
    assert weighted == pytest.approx((3 * each[0] + each[1]) / 2, rel=1e-5)


def test_of_what_an_example_has_one_is_kept_at_least():
    has = np.random.default_rng(0).random((4000, 5)) < 0.7
    for share in (0.3, 1.0):
        kept = np.asarray(draw_kept(jax.random.key(0), jnp.asarray(has), share))
        assert not np.any(kept & ~has)
        np.testing.assert_array_equal(kept.any(axis=1), has.any(axis=1))
        if share == 1.0:
            assert kept.sum(axis=1).max() == 1
        else:
            whole = has.all(axis=1)
            assert abs(kept[whole].mean() - 0.7) < 0.03
