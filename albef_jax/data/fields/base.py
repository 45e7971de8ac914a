"""What every field offers: raw values of examples in, fixed-shape arrays of a batch out."""

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from albef_jax.data.sources.base import Value, reason

Arrays = dict[str, np.ndarray]
Problems = list[str | None]  # of each example: why it cannot be used, in a few words, or None


class Field(abc.ABC):
    """One thing that examples have. A subclass has `spec`, and `load_one` or `load`.

    A missing value is the field's business: where examples may lack it, one of its arrays says so.

    Attributes:
        defaults: its settings, part of `config.data`.
        limits: setting -> (least, most), a most of None for none: of a number, or of each of a
            tuple, that must be in between.
        needs_tokenizer: it reads texts.
        light: the arrays of a whole evaluation set fit into memory.
    """

    defaults: Mapping[str, Any] = {}
    limits: Mapping[str, tuple] = {}
    needs_tokenizer = False
    light = True

    def check(self) -> None:
        """Checks its settings, before anything is read; raises a UserError that names one."""

    def check_facts(self, facts: Mapping[str, Any], where: str) -> None:
        """Checks the facts of the field in `Source.fields`; raises a UserError if they do not fit.

        `where` is what the source is called in messages.
        """

    def open(self, facts: Mapping[str, Any], tokenizer) -> None:
        """Takes the facts of a source and the tokenizer of the run, before `load`."""

    @abc.abstractmethod
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Its arrays of one example: name -> shape and dtype."""

    def load(self, values: Sequence[Value], rngs: Iterable[np.random.Generator | None],
             train: bool, parallel_map: Callable[..., Iterable] = map) -> tuple[Arrays, Problems]:
        """The arrays of some examples.

        Args:
            values: n functions that read the raw values.
            rngs: a generator for the random choices of each, made as it is asked for; None in
                evaluation.
            train: whether there are random choices, and training's settings count.
            parallel_map: `map`, or the ordered map of a thread pool.

        Returns:
            Arrays `[n, ...]` by name, and the `Problems`; rows of unusable examples are arbitrary.
        """
        arrays = {name: np.zeros((len(values), *one.shape), one.dtype)
                  for name, one in self.spec().items()}

        def load_row(row: int, value: Value, rng) -> str | None:
            try:
                loaded = self.load_one(value(), rng, train)
            except OSError as error:
                return reason(error)
            for name, array in arrays.items():
                if np.shape(loaded[name]) != array.shape[1:]:
                    return f"{name} of shape {np.shape(loaded[name])}, not {array.shape[1:]}"
                array[row] = loaded[name]
            return None

        return arrays, list(parallel_map(load_row, range(len(values)), values, rngs))

    def load_one(self, value, rng: np.random.Generator | None, train: bool) -> Arrays:
        """The arrays of one example; raises OSError where the value is damaged."""
        raise NotImplementedError

    def noise(self, rng: np.random.Generator, n: int) -> Arrays:
        """Arrays `[n, ...]` like those of `load`, without data. Here: normal numbers, or zeros."""
        return {name: rng.standard_normal((n, *one.shape)).astype(one.dtype)
                if np.issubdtype(one.dtype, np.floating) else np.zeros((n, *one.shape), one.dtype)
                for name, one in self.spec().items()}

    def trimmed(self, arrays: Arrays) -> Arrays:
        """The arrays of a whole evaluation set without what is padding in every example."""
        return arrays

    def notes(self) -> list[str]:
        """What is to be said about the data at the end of a run, a sentence each."""
        return []


def read_all(values: Sequence[Value], instead) -> tuple[list, Problems]:
    """The raw values, `instead` where one cannot be read, and the `Problems`."""
    raw, problems = [], []
    for value in values:
        try:
            raw.append(value())
            problems.append(None)
        except OSError as error:
            raw.append(instead)
            problems.append(reason(error))
    return raw, problems
