"""Masking of words (MLM, ALBEF eq. 3) and of features, and the positions to predict."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class MaskingDraws(NamedTuple):
    """The random choices of one masking; every field is `[b, l]`."""

    chosen: jax.Array  # bool: predict this token, if it is a word
    replaced: jax.Array  # bool: of the chosen, write [MASK]
    randomised: jax.Array  # bool: of the chosen that are not [MASK], write a random word
    words: jax.Array  # int32: the random words, special ids included


def draw_masking(key, shape, vocab_size, rate=0.15, replace=(0.8, 0.1, 0.1)):
    """Draws where and how to mask a batch of texts.

    Args:
      shape: `(b, l)`. vocab_size: random words are below it.
      rate: probability that a word is predicted.
      replace: shares of predicted words that become [MASK], a random word, or stay.
    """
    mask_share, random_share, _ = map(float, replace)
    random_of_rest = random_share / (1.0 - mask_share) if mask_share < 1.0 else 0.0
    keys = jax.random.split(key, 4)
    return MaskingDraws(
        chosen=jax.random.bernoulli(keys[0], rate, shape),
        replaced=jax.random.bernoulli(keys[1], mask_share, shape),
        randomised=jax.random.bernoulli(keys[2], random_of_rest, shape),
        words=jax.random.randint(keys[3], shape, 0, vocab_size))


def mask_tokens(ids_bl, draws, *, pad_id, cls_id, mask_id):
    """The masked ids `[b, l]`, and bool `[b, l]` that marks the positions to predict.

    [PAD] and [CLS] are never predicted; [SEP] may be, as in the public code.
    """
    predicted = draws.chosen & (ids_bl != pad_id) & (ids_bl != cls_id)
    masked = jnp.where(draws.replaced, mask_id, jnp.where(draws.randomised, draws.words, ids_bl))
    return jnp.where(predicted, masked, ids_bl), predicted


def inner_words(mask_bl):
    """bool `[b, l]`: real tokens but the first and the last, [CLS] and [SEP]."""
    real = mask_bl > 0
    followed = jnp.pad(real[:, 1:], ((0, 0), (0, 1)))
    return real & followed & (jnp.arange(real.shape[1]) > 0)


class FeatureDraws(NamedTuple):
    """The random choices of masking regions, clips or audio; every field is bool `[b, l]`."""

    chosen: jax.Array  # predict this one, if it is there
    zeroed: jax.Array  # of the chosen: replace it by zeros


def draw_features(key, shape, rate=0.15, zeroed=1.0):
    """Which of `(b, l)` features are predicted, and which of these are replaced by zeros."""
    keys = jax.random.split(key, 2)
    return FeatureDraws(jax.random.bernoulli(keys[0], rate, shape),
                        jax.random.bernoulli(keys[1], zeroed, shape))


def mask_features(features_bld, mask_bl, draws):
    """Features with zeros in the place of the drawn ones.

    Args:
      features_bld: float. mask_bl: 1 for real ones. draws: `FeatureDraws`.

    Returns:
      masked features `[b, l, d]`, and bool `[b, l]` that marks those to predict.
    """
    predicted = draws.chosen & (mask_bl > 0)
    zeroed = (predicted & draws.zeroed)[..., None]
    return jnp.where(zeroed, 0, features_bld).astype(features_bld.dtype), predicted


def default_budget(texts, length, rate=0.15):
    """Static number of predicted positions for a group: the mean plus six deviations.

    All positions but [CLS] count as words, so that full texts fit too.
    """
    words = texts * (length - 1)
    mean, deviation = words * rate, math.sqrt(words * rate * (1.0 - rate))
    return min(words, math.ceil(mean + 6.0 * deviation))


def masked_positions(predicted_bl, budget):
    """The positions to predict, bool `[b, l]`, as a list of the static length `budget` m.

    Returns:
      int32 `[m]` positions in the flattened `[b*l]` (0 where unused), float32 `[m]` weights
      (1 used, 0 unused), and the number of positions that did not fit, int32.
    """
    flat = predicted_bl.reshape(-1)
    count = jnp.sum(flat)
    (positions,) = jnp.nonzero(flat, size=budget, fill_value=0)
    weights = (jnp.arange(budget) < count).astype(jnp.float32)
    return positions, weights, jnp.maximum(count - budget, 0)


def weighted_mean(values_m, weights_m):
    """Mean over rows of weight 1, such as used positions; 0, not NaN, where there are none."""
    return jnp.sum(values_m * weights_m) / jnp.maximum(jnp.sum(weights_m), 1.0)
