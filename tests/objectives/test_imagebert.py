"""Pairs, masking and candidates drawn from keys, and the losses of scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.objectives import imagebert
from albef_jax.objectives.masking import (
    FeatureDraws,
    MaskingDraws,
    draw_features,
    inner_words,
    mask_features,
)

KEYS = jax.random.split(jax.random.key(0), 400)
IDS = jnp.array([5, 6, 7, 5, 8, 9, 10, 11])  # rows 0 and 3 show the same image


def drawn_pairs(negatives, ids=IDS):
    pairs = jax.vmap(lambda key: imagebert.draw_pairs(key, ids, negatives))(KEYS)
    return np.asarray(pairs.text_b), np.asarray(pairs.image_b)


def test_half_of_the_rows_get_another_image_or_text():
    text, image = drawn_pairs(0.5)
    matched = text == image
    assert np.all(matched.sum(axis=1) == 4)
    own = np.arange(8)
    assert np.all((text == own) | (image == own))  # one of the two is replaced, never both
    assert np.all((text != own).sum(axis=1) == 2) and np.all((image != own).sum(axis=1) == 2)
    ids = np.asarray(IDS)
    assert np.all(matched | (ids[text] != ids[image]))
    partners = np.bincount((text + image - own)[~matched[:, 1]][:, 1], minlength=8)
    assert partners[1] == 0 and partners[[0, 2, 3, 4, 5, 6, 7]].min() > 10


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_of_pairs_that_do_not_match(share):
    text, image = drawn_pairs(share)
    assert np.mean(text != image) == pytest.approx(share, abs=0.02)
    assert np.ptp((text != image).sum(axis=1)) <= 1


def test_a_group_of_one_image_has_only_matches():
    text, image = drawn_pairs(0.5, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(text, image)


def test_masked_regions_are_zeros_and_their_neighbours_are_not():
    features = jnp.arange(1.0, 13.0).reshape(1, 4, 3)
    draws = FeatureDraws(jnp.array([[True, True, False, True]]),
                         jnp.array([[True, False, True, True]]))
    masked, predicted = mask_features(features, jnp.array([[1, 1, 1, 0]]), draws)
    np.testing.assert_array_equal(predicted, [[True, True, False, False]])
    np.testing.assert_array_equal(masked[0, 0], 0)
    np.testing.assert_array_equal(masked[0, 1:], features[0, 1:])


def test_shares_of_masked_regions():
    draws = jax.vmap(lambda key: draw_features(key, (8, 10), 0.15, 0.9))(KEYS)
    assert np.mean(draws.chosen) == pytest.approx(0.15, abs=0.005)
    assert np.mean(draws.zeroed) == pytest.approx(0.9, abs=0.005)


def test_words_are_what_is_between_cls_and_sep():
    mask = jnp.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(inner_words(mask), [
        [False, True, True, False, False], [False] * 5, [False, True, True, True, False]])


def all_chosen(b):
    true = jnp.ones((b, 3), bool)
    return MaskingDraws(true, true, true, jnp.zeros((b, 3), jnp.int32)), FeatureDraws(true, true)


def test_conditional_masking_takes_one_of_the_two():
    draw = imagebert.MASKINGS["conditional"]
    words, regions = jax.vmap(lambda key: draw(key, *all_chosen(8)))(KEYS)
    assert np.all(np.asarray(words.chosen) ^ np.asarray(regions.chosen))
    assert np.mean(words.chosen) == pytest.approx(0.5, abs=0.03)
    words, regions = draw(None, *all_chosen(2), jnp.array([True, False]))
    np.testing.assert_array_equal(words.chosen, [[True] * 3, [False] * 3])
    np.testing.assert_array_equal(regions.chosen, [[False] * 3, [True] * 3])


def test_joint_masking_takes_both():
    words, regions = imagebert.MASKINGS["joint"](None, *all_chosen(2))
    assert np.all(words.chosen) and np.all(regions.chosen)


def test_losses_of_regions():
    features = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(imagebert.feature_losses(features, features), 0)
    np.testing.assert_allclose(imagebert.feature_losses(features, features + 2), 4)
    losses = imagebert.class_losses(jnp.array([[0.0, np.log(3.0)], [5.0, 5.0]]),
                                    jnp.array([1, -1]))
    np.testing.assert_allclose(losses, [np.log(4 / 3), np.log(2)], rtol=1e-6)


# ---- fine-tuning ---------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", [1, 3, 5])
def test_candidates(negatives):
    draws = jax.vmap(lambda key: imagebert.draw_candidates(key, IDS, negatives))(KEYS)
    text, image = np.asarray(draws.text_bc), np.asarray(draws.image_bc)
    own = np.arange(8)[:, None]
    assert text.shape == (400, 8, 1 + negatives)
    np.testing.assert_array_equal(text[..., :1], np.broadcast_to(own, (400, 8, 1)))
    np.testing.assert_array_equal(image[..., :1], text[..., :1])
    other_image, other_text = image[..., 1:] != own, text[..., 1:] != own
    assert np.all(other_image ^ other_text)
    assert np.mean(other_image) == pytest.approx(0.5, abs=0.02)
    assert np.all(np.abs(other_image.sum(-1) - other_text.sum(-1)) <= 1)
    partners = np.where(other_image, image[..., 1:], text[..., 1:])
    assert all(len({*row}) == negatives for row in partners.reshape(-1, negatives))
    negative = jax.vmap(lambda *draws: imagebert.is_negative(
        IDS, imagebert.CandidateDraws(*draws)))(draws.text_bc, draws.image_bc)
    assert np.all(np.asarray(negative)[..., 1:]) and not np.any(np.asarray(negative)[..., 0])


def test_a_candidate_of_the_same_image_is_no_negative():
    ids = jnp.array([1, 1, 2])
    draws = imagebert.draw_candidates(KEYS[0], ids, 2)
    negative = np.asarray(imagebert.is_negative(ids, draws))
    np.testing.assert_array_equal(negative.sum(axis=1), [1, 1, 2])


SCORES = jnp.array([[2.0, 1.9, -1.0], [0.0, 1.0, 3.0]])
NEGATIVE = jnp.array([[False, True, True], [False, True, False]])


def test_losses_by_hand():
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    binary = -np.mean(np.log([sigmoid(2.0), 1 - sigmoid(1.9), 1 - sigmoid(-1.0), sigmoid(0.0),
                              1 - sigmoid(1.0)]))
    assert imagebert.binary_loss(SCORES, NEGATIVE) == pytest.approx(binary, rel=1e-6)
    first = np.exp(2.0) / (np.exp(2.0) + np.exp(1.9) + np.exp(-1.0))
    second = 1 / (1 + np.exp(1.0))  # the score of 3 does not count
    assert imagebert.multiclass_loss(SCORES, NEGATIVE) == pytest.approx(
        -np.mean(np.log([first, second])), rel=1e-6)
    assert imagebert.triplet_loss(SCORES, NEGATIVE, 0.2) == pytest.approx(
        ((0.2 + 1.9 - 2.0) + (0.2 + 1.0 - 0.0)) / 2, rel=1e-5)


def test_rows_without_a_negative_have_finite_losses_and_gradients():
    none = jnp.zeros((2, 3), bool)
    for loss in (imagebert.binary_loss, imagebert.multiclass_loss, imagebert.triplet_loss):
        value, gradient = jax.value_and_grad(lambda s, loss=loss: loss(s, none))(SCORES)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert imagebert.multiclass_loss(SCORES, none) == imagebert.triplet_loss(SCORES, none) == 0


def test_matching_by_hand():
    loss = imagebert.itm_loss(jnp.array([0.0, np.log(3.0)]), jnp.array([True, False]))
    assert loss == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-6)
