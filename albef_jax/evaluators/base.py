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

    Attributes:
      params: online parameters, on the mesh. functions: of `Task.predict_fns`, by name.
      mesh: where they run. kept: what was encoded, for the evaluators after it and the page about
        the run, by what it was encoded of; see `once`.
    """

    def __init__(self, params, functions, mesh):
        self.params, self.functions, self.mesh = params, functions, mesh
        self.kept = {}

    def __getitem__(self, name):
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
    """Values over the steps of training, as the page about a run draws them."""

    title: str  # '{name}' in it stands for the evaluator; lines of charts of one title share it
    lines: Mapping[str, str]  # name of a value -> what the legend calls it, four at most
    dashed: tuple[str, ...] = ()  # values drawn beside these lines, in their order and colours
    blind: str = ""  # a value that says what knowing nothing gives: a horizontal line
    note: str = ""  # what is dashed
    top: float = -math.inf  # the chart is at least this high
    colour: int = 0  # of the first line, 0 to 3


class Group(NamedTuple):
    """Columns of a table under a title; `strong` if they are what counts."""

    title: str
    columns: tuple[str, ...]
    strong: bool = True


class Table(NamedTuple):
    """The values of an evaluator as the page about a run shows them.

    A row is a title, and for each group a list of values, None where nothing was measured: one for
    each column, or one for all of them.
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
        least). A least value of None means a tuple of words, '' a text, a tuple one of its texts;
        with a tuple as default the option is a tuple of whole numbers, else a number of the
        default's type.
      source: the `data.sources.Source` of its block.
      settings: its options by name. config, tokenizer: of the run.
      fields: those of its task that it asks for, by name; not opened.
    """

    options: Mapping[str, tuple[Any, Any]] = {}
    calls: tuple[str, ...] = ()  # names of `Task.predict_fns` that it needs
    asks: tuple[str, ...] = ()  # names of the fields of its task that it needs of its source
    labels: Mapping[str, str] = {}  # name of a value -> what a person reads; see `label`
    headline: Mapping[str, str] = {}  # the values on top of the page -> what stands over them
    charts: tuple[Chart, ...] = ()  # of its values
    description = ""  # one line about its data
    predictions = None  # after a run, what the model said, as plain values; None: nothing to keep

    def __init__(self, source, settings, config, tokenizer):
        """Opens the data; UserError if it cannot be used.

        Args:
          source: a source, or its block. settings: its options by name, all of them.
          config: of the run, whole. tokenizer: of the run; None if its task reads no texts.
        """
        self.source, self.settings = make_source(source), settings
        self.config, self.tokenizer = config, tokenizer
        fields = task_class(config.task).fields(config)
        self.fields = {name: fields[name] for name in self.asks}

    @classmethod
    def check(cls, settings, config):
        """Checks of its options what `options` does not say, before anything is read (UserError).

        `settings`: all of them, by name. `config`: of the run.
        """

    def inputs(self, call):
        """The fields of its task, by name, whose arrays a function of `Task.predict_fns` takes."""
        takes = inspect.signature(make_task(self.config).predict_fns()[call]).parameters.keys()
        fields = task_class(self.config.task).fields(self.config)
        return {name: field for name, field in fields.items() if field.spec().keys() <= takes}

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
        """Lines beneath a headline, one of `headline`: what to compare it with.

        `values` are all that were measured with it, by name.
        """
        del name, values
        return []

    def examples(self, forward, teacher):
        """What the page shows of a few examples, or UserError with why there is nothing.

        Of a section that two evaluators have, the page shows the later one's: ours come in the
        order of `evaluators.KINDS`, then others. Pictures are Pillow images.

        Args:
          forward: of the online parameters. teacher: of the momentum copy; None if there is none.

        Returns:
          Sections by name:
          - `rows`, for any task: a list of dicts with
            - `pictures`, a list, and `text`: the example;
            - `choices`, likeliest first: dicts with `text`, `share` (0 to 1) and `right`;
            - `truth`, a text, and `hit`, whether the likeliest is right.
          - `text_queries` and `image_queries`: see `queries.queries`.
          - `pseudo_targets`: see `queries.pseudo_targets`.
          - `words`: see `words.hidden_words`.
          - `heat`: see `heat.source_pictures`.
        """
        del forward, teacher
        return {}
