"""Batches from the host through a compiled function and back, a few of them under way.

Every batch is sharded over the mesh, every result is replicated and brought to the host. Several
processes run the same batches, and each sends the rows of its devices.
"""

from collections import deque
from contextlib import closing
import inspect

import jax
import numpy as np
from tqdm import tqdm

from albef_jax.data.eval_sets import INDEX, MASK, EvalRows
from albef_jax.parallel.mesh import local_rows, shard_batch
from albef_jax.parallel.signals import may_stop

# Batches sent ahead of the results: the host gathers the next rows while the device works.
IN_FLIGHT = 2


def whole_rows(rows, mesh):
    """A batch size rounded up to a multiple of the devices."""
    return -(-rows // mesh.size) * mesh.size


def run_batches(function, params, batches, mesh, total, what=""):
    """Yields (batch, host result) in order, with a progress bar on a terminal.

    Args:
      function: compiled, of params and the arrays of a batch by name, without mask and index.
      params: of the model. batches: dicts of host arrays `[b, ...]`, b a multiple of the devices.
      mesh: where it runs. total: number of batches. what: a word for the bar; '' for none.
    """
    waiting = deque()
    with tqdm(total=total, desc=f"evaluate {what}", unit="batch", leave=False,
              disable=True if jax.process_index() or not what else None) as bar:
        for batch in batches:
            may_stop()
            waiting.append((batch, _send(function, params, batch, mesh)))
            if len(waiting) > IN_FLIGHT:
                yield jax.device_get(waiting.popleft())
                bar.update()
        while waiting:
            yield jax.device_get(waiting.popleft())
            bar.update()


def _send(function, params, batch, mesh):
    mine = local_rows(mesh, len(next(iter(batch.values()))))
    arrays = {name: array[mine] for name, array in without_marks(batch).items()}
    return function(params, **shard_batch(arrays, mesh))


def taken(function, arrays):
    """Those of some arrays, by name, that a function has as arguments."""
    arguments = inspect.signature(function).parameters
    if any(one.kind is one.VAR_KEYWORD for one in arguments.values()):
        return arrays
    return {name: array for name, array in arrays.items() if name in arguments}


def without_marks(batch):
    """The arrays of a batch that are of its fields."""
    return {name: array for name, array in batch.items() if name not in (MASK, INDEX)}


class Rows:
    """The examples of an evaluator's source, for functions that look at each once.

    The last batch is padded and its padding dropped, so results are exact for any batch size and
    any number of devices.

    Attributes:
      data: an `EvalRows`.
    """

    options = {"max_examples": (0, 0)}

    def __init__(self, evaluator, fields=None, examples=None):
        """Opens `fields` of the source of an `Evaluator`, by default those that it asks for; of
        these `examples`, by default of the first `max_examples`."""
        self._fields = fields or evaluator.fields
        self.data = EvalRows(evaluator.source, self._fields, evaluator.tokenizer,
                             evaluator.config.data, evaluator.settings.get("max_examples", 0),
                             examples)
        self._batch_size = evaluator.settings["batch_size"]

    def __len__(self):
        return len(self.data)

    def run(self, forward, function, what="examples"):
        """A function of a model's parameters and of arrays by name, on all examples.

        Args:
          forward: the model, a `Forward`. what: a word for the progress bar.
          function: pure, the same one every time (a new one is compiled anew); from those of the
            fields' arrays `[b, ...]` that it has as arguments to a tree of arrays `[b, ...]`.

        Returns:
          The tree of its results, host arrays `[n, ...]` in the order of the source.
        """
        return self.run_changed(forward, function, [lambda arrays: arrays], what)[0]

    def run_changed(self, forward, function, changes, what="examples"):
        """As `run`, for several versions of the examples, which are read once.

        Args:
          changes: functions from the arrays of a batch to those of a version of it.

        Returns:
          The results of each version.
        """
        size = whole_rows(self._batch_size, forward.mesh)
        parts = [[] for _ in changes]
        with closing(self.data.batches(size)) as batches:
            sent = ({**change(taken(function, without_marks(batch))), MASK: batch[MASK]}
                    for batch in batches for change in changes)
            done = run_batches(forward.compiled(function), forward.params, sent, forward.mesh,
                               -(-len(self) // size) * len(changes), what)
            for number, (batch, result) in enumerate(done):
                real = batch[MASK] > 0
                parts[number % len(changes)].append(
                    jax.tree.map(lambda x, real=real: x[real], result))
        return [jax.tree.map(lambda *xs: np.concatenate(xs), *results) for results in parts]

    def some(self, forward, function, examples):
        """As `run`, on a few examples given by their numbers."""
        arrays = taken(function, self.data.some(examples))
        return jax.device_get(forward.compiled(function)(forward.params, **arrays))

    def shown(self, example):
        """What people see of an example: `pictures`, a list, and `text`, or its name without."""
        return {"pictures": self.data.pictures(example) if "image" in self._fields else [],
                "text": self.data.text(example) if "text" in self._fields
                else self.data.source.name(example)}


def percent(shares):
    """Mean of truths or shares, in percent."""
    return 100.0 * float(np.mean([float(share) for share in shares]))
