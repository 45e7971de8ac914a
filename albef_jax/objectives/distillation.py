"""Momentum distillation: the soft targets of the teacher and their weight (section 3.3)."""

import jax
import jax.numpy as jnp


def alpha_at(step, alpha, ramp_steps):
    """Weight of the soft targets: linear from 0 to `alpha` over the first `ramp_steps`."""
    if ramp_steps <= 0:
        return jnp.asarray(alpha, jnp.float32)
    return alpha * jnp.minimum(1.0, step / ramp_steps).astype(jnp.float32)


def soft_cross_entropy(logits, targets):
    """-sum(targets x log softmax(logits)) over the last axis, for targets that sum to 1.

    Written as logsumexp minus a dot product, so that no array of log probabilities is kept.
    It differs from KL(targets || softmax) by the entropy of the targets only.
    """
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(targets * logits, axis=-1)


def distilled_cross_entropy(logits, labels, teacher_logits, alpha):
    """(1 - alpha) CE(labels) + alpha CE(softmax of the teacher), float32 `[...]` (eq. 7).

    Args:
      logits, teacher_logits: float32 `[..., v]`. labels: int32 `[...]`. alpha: scalar.
    """
    soft = jax.lax.stop_gradient(jax.nn.softmax(teacher_logits, axis=-1))
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    expected = jnp.sum(soft * logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - (1.0 - alpha) * picked - alpha * expected
