"""The momentum queues: a ring buffer of features (section 3.2, after MoCo)."""

import jax
import jax.numpy as jnp


def init_queue(key, size, embed_dim):
    """Random unit vectors `[size, embed_dim]`, as the public code starts."""
    queue = jax.random.normal(key, (size, embed_dim))
    return queue / jnp.linalg.norm(queue, axis=-1, keepdims=True)


def enqueue(queue, entries, pointer):
    """Writes `entries` `[b, ...]` over the oldest rows of `queue` `[q, ...]`, b divides q."""
    start = (pointer,) + (0,) * (queue.ndim - 1)
    return jax.lax.dynamic_update_slice(queue, entries.astype(queue.dtype), start)
