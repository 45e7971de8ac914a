"""What every evaluator offers, and what it may ask of a model."""

from collections.abc import Mapping
import contextlib
import functools
import inspect
import math
import time
from typing import Any, NamedTuple

import jax

from albef_jax.data.sources import make_source
from albef_jax.parallel.mesh import replicated
from albef_jax.tasks import make_task, task_class


class Forward:
    """A model as evaluators see it: the functions of its task by name, on parameters that stay.

    What one evaluator has encoded is kept for those after it and for the page about the run.

    Attributes:
      params: online parameters, on the mesh. functions: of `Task.predict_fns`, by name.
      mesh: where they run. kept: what was encoded, by what it was encoded of; see `once`.
    """

    def __init__(self, params, functions, mesh):
        self.params, self.functions, self.mesh = params, functions, mesh
        self.kept = {}

    def __getitem__(self, name):
        """A function of `Task.predict_fns`."""
        return self.functions[name]

    def __contains__(self, name):
        return name in self.functions

    def compiled(self, function):
        """A function of parameters and arrays, jitted; its results are whole on every device.

        The same function gives the same compiled one, so give a new one only when it differs.
        """
        return _compiled(function, self.mesh)

    def with_params(self, params):
        """The same functions on other parameters, such as the teacher's."""
        return Forward(params, self.functions, self.mesh)

    def once(self, key, make, enough=None):
        """`make()`, or what it gave when it was called under this key before.

        Args:
          key: says what is made, and of what. make: gives a tree of arrays, of devices or host.
          enough: whether what was made before will do; None: always.
        """
        if key not in self.kept or (enough and not enough(self.kept[key])):
            self.kept[key] = make()
        return self.kept[key]

    def kept_bytes(self):
        """What it keeps on each device."""
        return sum(array.nbytes for array in jax.tree.leaves([*self.kept.values()])
                   if isinstance(array, jax.Array))


@functools.lru_cache(maxsize=256)
def _compiled(function, mesh):
    return jax.jit(function, out_shardings=replicated(mesh))


class Phases(dict):
    """Seconds of what an evaluator does, by phase."""

    @contextlib.contextmanager
    def timed(self, phase):
        """Adds the time inside to a phase."""
        begin = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - begin


class Chart(NamedTuple):
    """Values over the steps of training, as the page about a run draws them.

    Attributes:
      title: '{name}' in it stands for the evaluator; lines of charts of one title share it.
      lines: name of a value -> what the legend calls it, four at most.
      dashed: names of values that are drawn beside these lines, in their order and colours.
      blind: name of a value that says what knowing nothing gives: a horizontal line.
      note: what is dashed. top: the chart is at least this high. colour: of the first line, 0 to 3.
    """

    title: str
    lines: Mapping[str, str]
    dashed: tuple[str, ...] = ()
    blind: str = ""
    note: str = ""
    top: float = -math.inf
    colour: int = 0


class Group(NamedTuple):
    """Columns of a table under a title; `strong` if they are what counts."""

    title: str
    columns: tuple[str, ...]
    strong: bool = True


class Table(NamedTuple):
    """The values of an evaluator as the page about a run shows them.

    Attributes:
      rows: a title, and for each group a list of values, None where nothing was measured: one for
        each column, or one for all of them.
      groups: of columns.
    """

    rows: list[tuple[str, list[list[float | None]]]]
    groups: tuple[Group, ...] = (Group("", ("",)),)


class Evaluator:
    """Built once from a block of `config.evals`, run as often as wanted.

    `config.evals.NAME.kind` names the class: one of ours (`evaluators.KINDS`),
    `package.module:Class` or `path/to/file.py:Class`. What a subclass does not say is as here; it
    must have `run`.

    Attributes:
      options: of the block, beside `kind`, `source`, `every` and `batch_size`: name -> (default,
        least). Without a least value the option is a tuple of words, with a text for it a text,
        with a tuple for it one of these texts; with a tuple as its default it is a tuple of
        numbers.
      calls: names of `Task.predict_fns` that it needs.
      asks: names of the fields of its task that it needs of its source.
      labels: name of a value -> what a person reads; see `label`.
      headline: the values on top of the page -> what stands over them.
      charts: of its values.
      source: the `data.sources.Source` of its block.
      settings: its options by name. config, tokenizer: of the run.
      fields: those of its task that it asks for, by name; not opened.
      description: one line about its data.
      predictions: after a run, what the model said, as plain values; None: nothing to keep.
    """

    options: Mapping[str, tuple[Any, Any]] = {}
    calls: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    headline: Mapping[str, str] = {}
    charts: tuple[Chart, ...] = ()
    description = ""
    predictions = None

    def __init__(self, source, settings, config, tokenizer):
        """Opens the data.

        Args:
          source: a source, or its block. settings: its options by name, all of them.
          config: of the run, whole. tokenizer: of the run; None if its task reads no texts.

        Raises:
          UserError: the data cannot be used.
        """
        self.source, self.settings = make_source(source), settings
        self.config, self.tokenizer = config, tokenizer
        fields = task_class(config.task).fields(config)
        self.fields = {name: fields[name] for name in self.asks}

    def inputs(self, call):
        """The fields of its task, by name, whose arrays a function of `Task.predict_fns` takes."""
        names = inspect.signature(make_task(self.config).predict_fns()[call]).parameters.keys()
        return {name: field for name, field in task_class(self.config.task).fields(
            self.config).items() if field.spec().keys() <= names}

    def names(self):
        """The names that `run` yields, in order; None where only a run can tell."""
        return None

    def run(self, forward):
        """Yields (name, value) of a `Forward`; shares are in percent."""
        raise NotImplementedError

    # ---- on the page about a run -----------------------------------------------------------

    @classmethod
    def label(cls, name):
        """A value's name as a person reads it."""
        return cls.labels.get(name, name.replace("_", " "))

    @classmethod
    def table(cls, values):
        """The `Table` of measured values, by name; here a row each."""
        return Table([(cls.label(name), [[value]]) for name, value in values.items()])

    def beneath(self, name, values):
        """Lines beneath a headline: what to compare it with.

        Args:
          name: of `headline`. values: all that were measured with it, by name.
        """
        del name, values
        return []

    def examples(self, forward, teacher):
        """What the page shows of a few examples; pictures are Pillow images.

        Args:
          forward: of the online parameters. teacher: of the momentum copy; None if there is none.

        Returns:
          Sections by name; one that two evaluators have is the later one's (ours come in the order
          of `evaluators.KINDS`, then others). `rows`, for any task: a list of dicts with `pictures`
          (a list), `text`, `choices` (likeliest first, dicts with `text`, `share`, `right`),
          `truth` (a text) and `hit`. The others: `text_queries` and `image_queries`, see
          `queries.queries`; `pseudo_targets`, see `queries.pseudo_targets`; `words`, see
          `words.hidden_words`; `heat`, see `heat.source_pictures`.

        Raises:
          UserError: there is nothing to show, and why.
        """
        del forward, teacher
        return {}
