"""Rows that a model made, kept where they are used: on the devices as long as they fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.parallel.mesh import replicated

# Of a device's memory: a fourth for one table, a half for all; training and evaluation share the
# rest.
SHARE, TABLES = 4, 2
UNKNOWN_MEMORY = 16 * 2**30  # bytes; CPUs do not say how much they have


def table_bytes():
    """What one table may take on each device."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", UNKNOWN_MEMORY) // SHARE


class Table:
    """Rows `[n, ...]` that arrive batch by batch.

    Attributes:
      rows: a jax array, whole on every device, or a host array if that is too large; those past
        the last real row are padding. None before the first batch.
    """

    def __init__(self, batches, mesh, kept=0):
        """`batches`: how many will arrive. `mesh`: the devices, with `kept` bytes of others."""
        self._batches, self._mesh = batches, mesh
        self._room = min(table_bytes(), TABLES * table_bytes() - kept)
        self._added = self._fetched = 0
        self.rows = None

    def add(self, batch):
        """Takes a batch `[b, ...]` on the devices; returns what `fetched` wants to have later."""
        if self.rows is None:
            self._allocate(batch)
        if isinstance(self.rows, np.ndarray):
            return batch
        self.rows = write(self.rows, batch, np.int32(self._added))
        self._added += len(batch)
        return ()

    def fetched(self, batch):
        """Takes on the host what `add` returned, in the same order."""
        if len(batch):
            self.rows[self._fetched:self._fetched + len(batch)] = batch
            self._fetched += len(batch)

    def _allocate(self, batch):
        shape = (self._batches * len(batch), *batch.shape[1:])
        if self._batches * batch.nbytes > self._room:
            self.rows = np.empty(shape, batch.dtype)
        else:
            self.rows = jnp.zeros(shape, batch.dtype, device=replicated(self._mesh))


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
    n = len(rows)
    size = n
    if isinstance(rows, np.ndarray):
        size = min(n, max(1, table_bytes() // (rows.nbytes // n)))
    for start in range(0, n, size):
        first = min(start, n - size)
        yield start, start + size, first, on_devices(rows[first:first + size] if size < n
                                                     else rows, mesh)
