"""Image-text matching (ITM) with negatives drawn by similarity (ALBEF eq. 4, section 3.2)."""

import math

import jax
import jax.numpy as jnp
import optax

from albef_jax.objectives.masking import weighted_mean


def negative_probabilities(logits_bb, positives_bb, random_share=0.0):
    """Probability of every column to be drawn as a row's negative: float32 `[b, b]`.

    Args:
      logits_bb: similarities over the temperature, own group only.
      positives_bb: bool, columns that must not be drawn: zero. The others of a row sum to 1.
      random_share: of the draws that are uniform; the others are by softmax(logits).
    """
    def over_the_others(logits_bb):
        return jax.nn.softmax(jnp.where(positives_bb, -jnp.inf, logits_bb), where=~positives_bb)

    hard_bb, random_bb = over_the_others(logits_bb), over_the_others(jnp.zeros_like(logits_bb))
    return hard_bb + random_share * (random_bb - hard_bb)


def sample_negatives(key, logits_bb, positives_bb, random_share=0.0):
    """One drawn negative column for every row of a group, int32 `[b]`.

    See `negative_probabilities`; a row without any gets an arbitrary one (see `has_negative`).
    """
    probabilities = negative_probabilities(logits_bb, positives_bb, random_share)
    return jax.random.categorical(key, jnp.log(probabilities))


def random_share_at(step, share, steps):
    """Share of random negatives: linear from 1 to `share` over the first `steps`."""
    if steps <= 0:
        return jnp.asarray(share, jnp.float32)
    return jnp.maximum(share, 1.0 - step / steps).astype(jnp.float32)


def has_negative(positives_bb):
    """1.0 for rows with at least one negative column, float32 `[b]`."""
    return jnp.any(~positives_bb, axis=-1).astype(jnp.float32)


def itm_loss(logits_r2, labels_r, weights_r):
    """Weighted mean cross-entropy of match / no match, scalar float32 (eq. 4)."""
    return weighted_mean(
        optax.softmax_cross_entropy_with_integer_labels(logits_r2, labels_r), weights_r)


def knowing_nothing(match_weight):
    """Loss and accuracy of knowing no more than how many pairs match.

    `match_weight`: of a true pair, beside two wrong ones of weight 1.
    """
    share = match_weight / (match_weight + 2)
    return -share * math.log(share) - (1 - share) * math.log(1 - share), max(share, 1 - share)


def itm_accuracy(logits_r2, labels_r, weights_r):
    """Weighted share of rows whose larger logit is the label, scalar float32."""
    return weighted_mean(jnp.argmax(logits_r2, axis=-1) == labels_r, weights_r)
