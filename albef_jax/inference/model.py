"""What all loaded models share: parameters, a tokenizer, and batches of few shapes."""

from concurrent.futures import ThreadPoolExecutor
import sys

import jax
import numpy as np
from tqdm import tqdm

from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.batches import taken
from albef_jax.inference.inputs import as_value, name_of, pad
from albef_jax.parallel.mesh import make_mesh
from albef_jax.tasks import make_task


class NotOffered(UserError, AttributeError):
    """A model was asked for what its task does not do."""


class Model:
    """A trained model with its tokenizer and preprocessing; a subclass offers what its task does.

    Calls of any size run in batches of two shapes, one row or `batch_size` rows, so nothing is
    compiled anew for another number of images or texts.

    Attributes:
      config: of the run. params: its parameters. batch_size: rows that run at once.
      tokenizer: its tokenizer; None if its task reads no texts.
      task: its `tasks.base.Task`. fields: of the task, by name.
      forward: its functions, an `evaluators.base.Forward`.
      calls, asks: what a task must have to be loaded as this class: functions, and fields (name ->
        class). asks_some: likewise, of which one is enough.
      cleaning: of texts, see `data.text.clean`.
    """

    calls: tuple[str, ...] = ()
    asks: dict[str, type] = {}
    asks_some: dict[str, type] = {}
    cleaning = "caption"

    def __init__(self, config, params, tokenizer, batch_size=32, facts=None):
        """`facts`: field name -> facts of a data source that the field is opened with."""
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.batch_size, self.task = batch_size, make_task(config)
        self.fields, self._opened = self.task.fields(config), set()
        self._told_cut = False
        self._facts = {"text": {"cleaning": self.cleaning}, **(facts or {})}
        self.forward = Forward(params, self.task.predict_fns(),
                               make_mesh(devices=jax.devices()[:1]))

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        offered = [method for method in dir(type(self)) if not method.startswith("_")
                   and callable(getattr(type(self), method))
                   and (method != "predict" or self.forward.functions)]
        raise NotOffered(f"A model of the task {self.config.task!r} has no {name}; it has "
                         f"{', '.join(offered) or 'nothing to offer'}, so load one of another "
                         "task for that.")

    def predict(self, name, /, **values):
        """What a function of the task, `Task.predict_fns()[name]`, gives for examples, in batches.

        Args:
          values: of each field that the function reads, by the field's name, a list with the raw
            value of each example (`data.sources.base.Source` has a table of them). An image may be
            in any form that `inputs.raw_image` knows, a text is a str.

        Returns:
          The function's result for n examples: an array `[n, ...]` or a tree of such, numpy.

        Raises:
          UserError: there is no such function or field, the lists have different lengths, or a
            value cannot be read.
        """
        if name not in self.forward:
            raise NotOffered(f"A model of the task {self.config.task!r} has no function {name!r}; "
                             f"it has {', '.join(self.forward.functions) or 'none'}.")
        values = {field: list(given) for field, given in values.items()}
        for field in values:
            if field not in self.fields:
                raise UserError(f"The task {self.config.task!r} has no field {field!r}; its fields "
                                f"are {', '.join(self.fields)}.")
        counts = {field: len(given) for field, given in values.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise UserError(f"predict got as many values as {counts}; give each field one value "
                            "per example, at least one.")

        def of_rows(rows):
            arrays = {}
            for field, given in values.items():
                arrays |= self._load(field, given[rows], rows.start)
            arrays = taken(self.forward[name], arrays)  # it need not read all of a field
            return self._call(self.forward[name], **self._padded(arrays))

        return self._in_blocks(of_rows, max(counts.values()), name, progress=False)

    def _load(self, name, values, first=0, broken=None):
        """The arrays `[n, ...]` of a field by name, as evaluation reads it; UserError if it cannot.

        Args:
          name: of the field. values: n values as people give them. first: the number of the first.
          broken: a dict that takes number -> reason of those that cannot be read, whose rows mean
            nothing; None: the first such value is an error that names it.
        """
        field = self._open(name)
        self._say_cut(field, values)
        with ThreadPoolExecutor() as pool:
            arrays, problems = field.load([as_value(field, value) for value in values],
                                          [None] * len(values), False, pool.map)
        problems = {row: problem for row, problem in enumerate(problems) if problem}
        if broken is not None:
            broken |= {first + row: problem for row, problem in problems.items()}
        elif problems:
            row, problem = min(problems.items())
            remedy = ("give a complete picture in a format that Pillow knows"
                      if isinstance(field, ImageField) else "mend it or leave it out")
            raise UserError(f"The {name} {name_of(values[row], first + row)} cannot be read "
                            f"({problem}); {remedy}.")
        return arrays

    def _say_cut(self, field, values):
        """Says once that a text is not read whole, and how it would be."""
        texts = [value for value in values if isinstance(value, str)]
        cut = not self._told_cut and isinstance(field, TextField) and field.cut(texts)
        if cut:
            row, words, tokens = cut[0]
            self._told_cut = True
            print(f"The text {texts[row][:40]!r}... has {words} words, {tokens} tokens, and is read "
                  f"in part, as in evaluation; text_length={tokens} reads it whole (load(..., "
                  f"text_length={tokens}), or --text-length {tokens} in the shell).",
                  file=sys.stderr)

    def _open(self, name):
        """A field, connected with the tokenizer and its facts."""
        if name not in self._opened:
            try:
                self.fields[name].open(self._facts.get(name, {}), self.tokenizer)
            except KeyError as error:
                raise UserError(f"The field {name!r} wants the fact {error} of a data source; give "
                                f"it as load(..., facts={{{name!r}: {{{error}: ...}}}}).") from None
            self._opened.add(name)
        return self.fields[name]

    def _call(self, function, *arrays, **named):
        """A function of the parameters and arrays, compiled; its result is on the device."""
        with jax.default_matmul_precision(self.config.matmul_precision):
            return self.forward.compiled(function)(self.params, *arrays, **named)

    def _padded(self, arrays):
        return {name: pad(array, self.batch_size) for name, array in arrays.items()}

    def _blocks(self, count, what, progress):
        """Slices of `count` rows that fill a batch, and one for the rest; with a progress bar."""
        starts = range(0, count, self.batch_size)
        return tqdm([slice(start, min(start + self.batch_size, count)) for start in starts], what,
                    unit="batch", disable=None if progress else True)

    def _in_blocks(self, encode, count, what, progress):
        """Concatenates `encode(slice)` over blocks; one block is loaded while one is computed."""
        results = []
        for rows in self._blocks(count, what, progress):
            if results:
                results[-1] = jax.device_get(results[-1])
            results.append(encode(rows))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *jax.device_get(results))
