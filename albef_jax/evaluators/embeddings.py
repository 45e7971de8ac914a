"""Rows that a model made, kept where they are used: on the devices as long as they fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.evaluators.batches import run_batches, taken
from albef_jax.parallel.mesh import replicated

# Of a device's memory: a fourth for one table of rows, a half for all; training and evaluation
# share the rest.
SHARE, TABLES = 4, 2
UNKNOWN_MEMORY = 16 * 2**30  # bytes; CPUs do not say how much they have


def table_bytes():
    """What one table of rows may take on each device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", UNKNOWN_MEMORY) // SHARE


def run_encoder(forward, encoder, batches, total, count, what):
    """Embeddings `[n, ...]`, and features `[count, e]`, of the first rows of some batches.

    Embeddings are a jax array, whole on every device, or a host array if that is too large; those
    past `count` are padding.

    Args:
      forward: a `Forward`. encoder: of its functions; gives embeddings, or these and features.
      batches, total, what: see `run_batches`.
    """
    compiled, made, rows, filled = forward.compiled(encoder), [], None, 0
    room = min(table_bytes(), TABLES * table_bytes() - forward.kept_bytes())

    def encode(params, **arrays):
        """What the host is to fetch of a batch; embeddings only where it keeps them itself."""
        nonlocal rows, filled
        result = compiled(params, **arrays)
        embeds, *feats = result if isinstance(result, tuple) else (result,)
        if rows is None:
            shape = total * len(embeds), *embeds.shape[1:]
            rows = (np.empty(shape, embeds.dtype) if total * embeds.nbytes > room else
                    jnp.zeros(shape, embeds.dtype, device=replicated(forward.mesh)))
        if isinstance(rows, np.ndarray):
            return embeds, feats
        rows = write(rows, embeds, np.int32(filled))
        filled += len(embeds)
        return (), feats

    inputs = (taken(encoder, batch) for batch in batches)
    for _, (embeds, feats) in run_batches(encode, forward.params, inputs, forward.mesh, total,
                                          what):
        if isinstance(rows, np.ndarray):
            rows[filled:filled + len(embeds)] = embeds
            filled += len(embeds)
        made.append(feats)
    return rows, *(np.concatenate(parts)[:count] for parts in zip(*made))


@functools.partial(jax.jit, donate_argnums=0)
def write(table, batch, first):
    """The table with a batch of rows from row `first` on; in place."""
    return jax.lax.dynamic_update_slice_in_dim(table, batch, first, axis=0)


def on_devices(rows, mesh):
    """Host rows as an array that is whole on every device; others are there already."""
    if isinstance(rows, jax.Array):
        return rows
    return jax.make_array_from_process_local_data(replicated(mesh), np.ascontiguousarray(rows))


def slabs(rows, mesh):
    """Yields all rows in parts that fit on the devices, of one shape.

    Yields:
      (start, stop, first, part): rows start..stop-1 are in `part` on the devices, which begins
      with row `first`.
    """
    size = n = len(rows)
    if isinstance(rows, np.ndarray):
        size = min(n, max(1, table_bytes() // (rows.nbytes // n)))
    for start in range(0, n, size):
        first = min(start, n - size)
        part = rows[first:first + size] if size < n else rows
        yield start, start + size, first, on_devices(part, mesh)
