"""A file of somebody else's encoder, under the names of a layout that our tables know.

A module for a layout (`bert`, `vit`) has the name of our encoder, `ENCODER`, and `fill(config,
tensors, settings, leaves)`: of a whole config, name -> array, the file's config.json and path ->
fresh leaf of the encoder it makes path -> numpy array of what the file fills, and the `Report`. It
raises a UserError for a model of another kind or size, and as `salesforce.read_leaves`.
"""

import re

from albef_jax.errors import UserError
from albef_jax.weights.foreign.salesforce import read_leaves
from albef_jax.weights.report import Report


class EncoderFile:
    """What a reader of a foreign layout asks of a file, and says about it.

    Attributes:
      tensors: the file's name -> array. settings: its config.json, a dict.
      names: name in the layout -> name in the file.
      report: of what goes where.
    """

    def __init__(self, title, tensors, settings, renamed):
        """`renamed`: pairs of a pattern and what it becomes, from the file's names to the layout's.
        """
        self.tensors, self.settings, self.names = dict(tensors), settings, {}
        self.report = Report(title)
        for original in tensors:
            name = original
            for pattern, new in renamed:
                name = re.sub(pattern, new, name)
            self.names[name] = original

    def shape(self, name, axes):
        """The shape of a tensor; Nones where it is missing or has another number of axes."""
        shape = self.tensors[self.names[name]].shape if name in self.names else ()
        return shape if len(shape) == axes else (None,) * axes

    def check(self, model, found, known):
        """Compares what the file says about its model with ours, before any tensor is looked at.

        Args:
          model: a config's model block.
          found: field of that block -> the file's value; None where it does not say.
          known: name of a setting that cannot be changed -> values that are ours.

        Raises:
          UserError: naming what differs.
        """
        for name, ours in known.items():
            value = self.settings.get(name)
            if value is not None and value not in ours:
                raise UserError(f"{self.report.title}: the file's {name} is {value!r}, and only "
                                f"{' or '.join(map(repr, ours))} exists here; use other weights.")
        differing = {name: value for name, value in found.items()
                     if value is not None and value != model[name]}
        if differing:
            theirs = " ".join(f"model.{name}={value}" for name, value in differing.items())
            ours = ", ".join(str(model[name]) for name in differing)
            raise UserError(f"{self.report.title}: the file is of a model with {theirs} (here "
                            f"{ours}); set these values, or use weights of this size.")

    def ignore(self, rules):
        """Leaves tensors out on purpose; `rules`: pattern of a name in the layout -> why."""
        for name, original in self.names.items():
            for pattern, rule in rules.items():
                if re.fullmatch(pattern, name):
                    self.report.ignore(original, rule)

    def fill(self, table, leaves, patch_size):
        """As `read_leaves`, of entries whose sources are names in the layout."""
        entries = [entry._replace(sources=tuple(self.names.get(name, name)
                                                for name in entry.sources)) for entry in table]
        return read_leaves(entries, self.tensors, leaves, patch_size, self.report)
