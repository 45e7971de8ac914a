"""Image-text matching (ITM) with negatives drawn by similarity (ALBEF eq. 4, section 3.2)."""

import jax
import jax.numpy as jnp
import optax

from albef_jax.objectives.masking import weighted_mean


def negative_probabilities(logits_bb, positives_bb, negatives="hard"):
    """Probability of every column to be drawn as a row's negative: float32 `[b, b]`.

    Args:
      logits_bb: similarities over the temperature, own group only.
      positives_bb: bool, columns that must not be drawn: zero. The others of a row sum to 1.
      negatives: 'hard' is softmax(logits) over the others, 'random' uniform.
    """
    logits = logits_bb if negatives == "hard" else jnp.zeros_like(logits_bb)
    return jax.nn.softmax(jnp.where(positives_bb, -jnp.inf, logits), where=~positives_bb)


def sample_negatives(key, logits_bb, positives_bb, negatives="hard"):
    """One drawn negative column for every row of a group, int32 `[b]`.

    See `negative_probabilities`; a row without any gets an arbitrary one (see `has_negative`).
    """
    probabilities = negative_probabilities(logits_bb, positives_bb, negatives)
    return jax.random.categorical(key, jnp.log(probabilities))


def has_negative(positives_bb):
    """1.0 for rows with at least one negative column, float32 `[b]`."""
    return jnp.any(~positives_bb, axis=-1).astype(jnp.float32)


def itm_loss(logits_r2, labels_r, weights_r):
    """Weighted mean cross-entropy of match / no match, scalar float32 (eq. 4)."""
    return weighted_mean(
        optax.softmax_cross_entropy_with_integer_labels(logits_r2, labels_r), weights_r)


def itm_accuracy(logits_r2, labels_r, weights_r):
    """Weighted share of rows whose larger logit is the label, scalar float32."""
    return weighted_mean(jnp.argmax(logits_r2, axis=-1) == labels_r, weights_r)
