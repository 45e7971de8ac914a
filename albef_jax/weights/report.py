"""What went where when weights came in: every tensor is accounted for, or nothing is loaded.

There is no lenient mode: whoever wants to leave something out writes a rule with a name.
"""

import collections
import re

import numpy as np

from albef_jax.errors import UserError, listed
from albef_jax.run.tables import aligned

MAX_NAMED = 3  # tensors named in a sentence
ROOTS = ("params", "teacher", "memory")  # of a whole state; a tree without them is fine too
NUMBER = re.compile(r"\d+")


class Report:
    """Collects where source tensors and target leaves went, and what is wrong with them.

        report = Report("bert-base.safetensors -> text encoder")
        report.use(("bert.pooler.weight",), "head/kernel")  # for every leaf that is filled
        report.ignore("cls.seq_relationship.bias", "no next-sentence task")
        report.fresh("itm_head/dense/kernel", "not in BERT")
        report.check(tensors, leaf_paths)  # raises on anything that is not accounted for
        print(report)

    Paths are strings with '/' or tuples of keys; source names are strings.

    Attributes:
      title: heading of the table; also opens the sentence of an error.
    """

    def __init__(self, title):
        self.title = title
        self._used = []  # (source names, target path)
        self._ignored = {}  # source name -> rule
        self._fresh = {}  # target path -> rule
        self._interpolated = {}  # target path -> (size before, size after)
        self._wrong = {}  # source name -> what is wrong

    def use(self, sources, target):
        """The leaf `target` is made of the tensors `sources` (names)."""
        self._used.append((tuple(sources), as_path(target)))

    def ignore(self, source, rule):
        """The tensor `source` is left out on purpose; `rule` says why."""
        self._ignored[source] = rule

    def fresh(self, target, rule):
        """The leaf `target` keeps its initial value on purpose; `rule` says why."""
        self._fresh[as_path(target)] = rule

    def interpolate(self, target, before, after):
        """The leaf `target`, also given to `use`, was resized; sizes are for people to read."""
        self._interpolated[as_path(target)] = before, after

    def wrong(self, source, what):
        """The tensor `source` cannot be used as it is; `check` raises."""
        self._wrong[source] = what

    def inspect(self, source, array, shape, dtype=np.float32):
        """The tensor `source` is wrong if it cannot be a leaf of that shape and type."""
        if what := fault(array, shape, dtype):
            self.wrong(source, what)

    def check(self, sources, targets):
        """Everything is accounted for exactly once.

        Args:
          sources: names of all source tensors. targets: paths of all leaves.

        Raises:
          UserError: one sentence with the first tensors of every sort of trouble, and a count.
        """
        sources, targets = list(sources), [as_path(target) for target in targets]
        given, wanted = set(sources), set(targets)
        read = dict.fromkeys(name for names, _ in self._used for name in names)
        filled = collections.Counter([target for _, target in self._used] + list(self._fresh))
        known = {*read, *self._ignored, *self._wrong}
        troubles = {
            "cannot be used": [f"{name} {what}" for name, what in self._wrong.items()],
            "missing": [name for name in read if name not in given | self._wrong.keys()],
            "unknown": [name for name in sources if name not in known],
            "without a value": [path for path in targets if path not in filled],
            "filled twice": [path for path, times in filled.items() if times > 1],
            "not part of the model": [path for path in filled if path not in wanted]}
        parts = [f"{len(names)} {what} ({listed(names, MAX_NAMED)})"
                 for what, names in troubles.items() if names]
        if parts:
            raise UserError(f"{self.title}: {'; '.join(parts)}; nothing was loaded, use weights "
                            "that fit this model or a config that fits these weights.")

    def __str__(self):
        """The table: one line per module, then what was ignored, fresh and interpolated."""
        modules = {}
        for sources, target in self._used:
            names, paths = modules.setdefault(_module(target), ([], []))
            names += sources
            paths.append(target)
        tables = [[(_collapse(names), len(names), f"-> {_collapse(paths)}")
                   for names, paths in modules.values()]]
        for heading, entries in (("ignored", self._ignored), ("fresh", self._fresh)):
            rules = {}
            for name, rule in entries.items():
                rules.setdefault((rule, _module(name)), []).append(name)
            tables.append([(f"{heading}: {_collapse(names)}", len(names), rule)
                           for (rule, _), names in rules.items()])
        lines = [self.title, *(aligned(rows, indent=2) for rows in tables if rows)]
        lines += [f"  interpolated: {target} from {before} to {after}"
                  for target, (before, after) in self._interpolated.items()]
        used = sum(len(names) for names, _ in self._used)
        lines.append(f"  {used} tensors used, {len(self._ignored)} ignored; "
                     f"{len(self._used)} parameters filled, {len(self._fresh)} fresh")
        return "\n".join(lines)


def as_path(path):
    """A leaf's path as a string, keys joined by '/'."""
    return path if isinstance(path, str) else "/".join(path)


def fault(array, shape, dtype=np.float32):
    """What keeps an array from being a leaf of that shape and type, None if nothing.

    float16 and bfloat16 become float32, integers another integer type that holds them; nothing
    that would lose digits is converted.
    """
    if tuple(array.shape) != tuple(shape):
        return f"has shape {list(array.shape)}, not {list(shape)}"
    if not np.issubdtype(dtype, np.floating):
        if not np.issubdtype(array.dtype, np.integer):
            return f"is {array.dtype}, not an integer"
        limits = np.iinfo(dtype)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            return f"has values beyond {np.dtype(dtype)}"
        return None
    if array.dtype.name not in ("float32", "bfloat16", "float16"):
        return f"is {array.dtype}, not float32, bfloat16 or float16"
    # A sum is not finite if an entry is not; only then is every entry looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(array, dtype=np.float32)
    return None if np.isfinite(total) or np.isfinite(array).all() else "holds NaN or infinity"


def _module(name):
    """The module of a name or path, with every number collapsed: what shares a line."""
    parts = re.split(r"[./]", name)
    for depth, part in enumerate(parts[:-1]):
        if NUMBER.search(part):
            return NUMBER.sub("#", "/".join(parts[: depth + 1]))
    depth = 3 if parts[0] in ROOTS else 2
    return "/".join(parts[:-1][:depth]) or parts[-1]


def _collapse(names):
    """What names have in common, numbers as a range: `blocks.0-11` for its 144 tensors."""
    split = [re.split(r"([./])", name) for name in names]
    common = []
    for parts in zip(*split):
        if len({NUMBER.sub("#", part) for part in parts}) > 1:
            break
        numbers = sorted({int(n) for part in parts for n in NUMBER.findall(part)[:1]})
        common.append(parts[0] if len(set(parts)) == 1 else
                      NUMBER.sub(f"{numbers[0]}-{numbers[-1]}", parts[0], count=1))
    return "".join(common).strip("./") or listed(names, MAX_NAMED)
