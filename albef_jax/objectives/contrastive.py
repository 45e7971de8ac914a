"""Image-text contrastive loss (ITC) against the momentum queues (ALBEF eq. 1, 2, 6)."""

import jax
import jax.numpy as jnp

from albef_jax.objectives.distillation import soft_cross_entropy


def similarity_logits(feat_be, batch_ce, queue_qe, temperature):
    """Similarities to the candidates, over the temperature (eq. 1).

    The batch and the queue are multiplied apart: joined first, the queue would be copied once
    per group.

    Args:
      feat_be: unit features `[b, e]`. temperature: scalar.
      batch_ce: unit momentum features of the other modality in the own group `[c, e]`.
      queue_qe: the same of past steps `[q, e]`.

    Returns:
      float32 `[b, c + q]`, own group first.
    """
    return jnp.concatenate([feat_be @ batch_ce.T, feat_be @ queue_qe.T], axis=-1) / temperature


def pair_positives(batch, queue_size):
    """Only the own partner is positive: bool `[batch, batch + queue_size]`."""
    return jnp.eye(batch, batch + queue_size, dtype=bool)


def image_positives(ids_b, queue_ids_q):
    """Every candidate of the same image is positive (section 3.5): bool `[b, b + q]`.

    Of the image ids (int32) of the own group and in the queue, where -1 is empty.
    """
    return ids_b[:, None] == jnp.concatenate([ids_b, queue_ids_q])[None, :]


def itc_targets(positives_bc, momentum_logits_bc, alpha):
    """(1 - alpha) x ground truth + alpha x softmax of the teacher's similarities (eq. 6).

    The ground truth gives every positive the same share. No gradient flows into targets.
    """
    truth = positives_bc / jnp.sum(positives_bc, axis=-1, keepdims=True)
    soft = jax.nn.softmax(momentum_logits_bc, axis=-1)
    return jax.lax.stop_gradient((1.0 - alpha) * truth + alpha * soft)


def itc_loss(i2t_logits_bc, t2i_logits_bc, i2t_targets_bc, t2i_targets_bc):
    """Mean of the two soft cross-entropies, scalar float32 (eq. 2)."""
    return (jnp.mean(soft_cross_entropy(i2t_logits_bc, i2t_targets_bc))
            + jnp.mean(soft_cross_entropy(t2i_logits_bc, t2i_targets_bc))) / 2.0


def mi_bound(logits_bc, positives_bc):
    """Lower bound on the mutual information of the two views, in nats (eq. 8).

    The log of the number of candidates minus InfoNCE with hard targets.
    """
    truth = positives_bc / jnp.sum(positives_bc, axis=-1, keepdims=True)
    return jnp.log(float(logits_bc.shape[-1])) - jnp.mean(soft_cross_entropy(logits_bc, truth))


def init_queue(key, size, embed_dim):
    """Random unit vectors `[size, embed_dim]`, as the public code starts."""
    queue = jax.random.normal(key, (size, embed_dim))
    return queue / jnp.linalg.norm(queue, axis=-1, keepdims=True)


def enqueue(queue, entries, pointer):
    """Writes `entries` `[b, ...]` over the oldest rows of `queue` `[q, ...]`, b divides q."""
    start = (pointer,) + (0,) * (queue.ndim - 1)
    return jax.lax.dynamic_update_slice(queue, entries.astype(queue.dtype), start)
