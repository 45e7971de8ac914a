"""Batches from the host through a compiled function and back, a few of them under way.

Every batch is sharded over the mesh, every result is replicated and brought to the host. Several
processes run the same batches, and each sends the rows of its devices.
"""

from collections import deque

import jax
import numpy as np
from tqdm import tqdm

from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.sources import make_source
from albef_jax.parallel.mesh import local_rows, replicated, shard_batch
from albef_jax.parallel.signals import may_stop

# Batches sent ahead of the results: the host gathers the next rows while the device works.
IN_FLIGHT = 2
NOT_SENT = ("_mask", "index")  # for the host


def whole_rows(rows, mesh):
    """A batch size rounded up to a multiple of the devices."""
    return -(-rows // mesh.size) * mesh.size


def run_batches(function, params, batches, mesh, total, what):
    """Yields (batch, host result) in order, with a progress bar on a terminal.

    Args:
      function: compiled, of params and a batch's arrays in their order, without `NOT_SENT`.
      params: of the model. batches: dicts of host arrays `[b, ...]`, b a multiple of the devices.
      mesh: where it runs. total: number of batches. what: a word for the progress bar.
    """
    waiting = deque()
    with tqdm(total=total, desc=f"evaluate {what}", unit="batch", leave=False,
              disable=True if jax.process_index() else None) as bar:
        for batch in batches:
            may_stop()
            waiting.append((batch, _send(function, params, batch, mesh)))
            if len(waiting) > IN_FLIGHT:
                yield _fetch(*waiting.popleft(), bar)
        while waiting:
            yield _fetch(*waiting.popleft(), bar)


def _send(function, params, batch, mesh):
    mine = local_rows(mesh, len(next(iter(batch.values()))))
    arrays = {key: value[mine] for key, value in batch.items() if key not in NOT_SENT}
    return function(params, *shard_batch(arrays, mesh).values())


def _fetch(batch, result, bar):
    result = jax.device_get(result)
    bar.update()
    return batch, result


class Rows:
    """The examples of an evaluation source, and a compiled function that looks at each once.

    The last batch is padded and its padding dropped, so results are exact for any batch size and
    any number of devices.

    Attributes:
      data: an `EvalRows`.
    """

    fields = {"max_examples": (0, 0)}

    def __init__(self, source, settings, data_config, tokenizer):
        self.data = EvalRows(make_source(source), tokenizer, data_config,
                             settings["max_examples"])
        self._batch_size = settings["batch_size"]
        self._function = self._compiled = None

    def run(self, function, params, mesh, what="examples"):
        """`function(params, image, text_ids, text_mask)` on all examples.

        Args:
          function: pure, the same one every time (a new one is compiled anew); a tree of arrays
            `[b, ...]`. params: of the model. mesh: with the axis 'data'.

        Returns:
          The tree of its results, host arrays `[n, ...]` in the order of the source.
        """
        if self._function != (function, mesh):
            self._compiled = jax.jit(function, out_shardings=replicated(mesh))
            self._function = function, mesh
        size = whole_rows(self._batch_size, mesh)
        parts = []
        total = -(-len(self.data) // size)
        batches = self.data.batches(size)
        try:
            for batch, result in run_batches(self._compiled, params, batches, mesh, total, what):
                real = batch["_mask"] > 0
                parts.append(jax.tree.map(lambda x, real=real: x[real], result))
        finally:
            batches.close()
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def percent(shares):
    """Mean of truths or shares, in percent."""
    return 100.0 * float(np.mean([float(share) for share in shares]))
