"""How a file of somebody else's model fills one of our encoders."""

import dataclasses
from collections.abc import Mapping, Sequence

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from albef_jax.errors import UserError
from albef_jax.weights.report import Report, fault
from albef_jax.weights.foreign.salesforce import Entry, shapes_there, to_leaf


@dataclasses.dataclass
class Plan:
    """Which tensors make which leaf; what is ignored or fresh is in the report already.

    Attributes:
      tensors: name -> array, all of the file.
      entries: the leaves to fill; sources are names in `tensors`.
      report: takes what `fill` does.
    """

    tensors: Mapping[str, np.ndarray]
    entries: Sequence[Entry]
    report: Report

    def fill(self, encoder, tree, patch_size=None):
        """The encoder's parameters with all entries filled.

        Args:
          encoder: name of the encoder, the first key of every path.
          tree: its fresh parameters, nested dicts. patch_size: of the model, if it has patches.

        Returns:
          A tree like `tree`; filled leaves are float32 numpy arrays.

        Raises:
          UserError: a tensor is missing, left over, broken or of another shape.
        """
        leaves = flatten_dict({encoder: tree})
        filled = {}
        for entry in self.entries:
            self.report.use(entry.sources, entry.path)
            parts = [self.tensors.get(name) for name in entry.sources]
            if entry.path in leaves and all(part is not None for part in parts):
                wanted = shapes_there(entry, leaves[entry.path].shape, patch_size)
                faults = [(name, fault(part, shape))
                          for name, part, shape in zip(entry.sources, parts, wanted)]
                for name, what in faults:
                    if what:
                        self.report.wrong(name, what)
                if not any(what for _, what in faults):
                    filled[entry.path] = to_leaf(entry, parts)
        self.report.check(self.tensors, leaves)
        return unflatten_dict(leaves | filled)[encoder]


def check_settings(title, model, found, known):
    """Compares what a file says about its model with ours, before any tensor is looked at.

    Args:
      title: names the file. model: a config's model block.
      found: field of the model block -> the file's value; None where it does not say.
      known: `(what, value of the file, values that are ours)`: settings that cannot be changed.

    Raises:
      UserError: naming what differs.
    """
    for what, value, ours in known:
        if value is not None and value not in ours:
            raise UserError(f"{title}: the file's {what} is {value!r}, and only "
                            f"{' or '.join(map(repr, ours))} exists here; use other weights.")
    differing = {name: value for name, value in found.items()
                 if value is not None and value != model[name]}
    if differing:
        theirs = " ".join(f"model.{name}={value}" for name, value in differing.items())
        ours = ", ".join(str(model[name]) for name in differing)
        raise UserError(f"{title}: the file is of a model with {theirs} (here {ours}); set these "
                        "values, or use weights of this size.")
