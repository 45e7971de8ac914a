"""From (seed, step) to a batch: order, random draws, loading, replacement of what is broken.

There is no iterator state to save. A host makes the rows of the global batch that its devices hold.
"""

import functools
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from albef_jax.data.fields.base import Field
from albef_jax.data.prefetch import num_workers, prefetch
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError
from albef_jax.parallel import processes

TOLERATED_BAD = 3  # so few different broken examples never stop a run
LISTED_BAD = 20


class Key(ISeedSequence):
    """Two words that become the key of a generator as they are; `key=` takes four times as long."""

    def __init__(self, *words: int):
        self._words = np.array(words, np.uint64)

    def generate_state(self, n_words, dtype=np.uint64):
        """See numpy."""
        return self._words


def example_rng(seed: int, shown: int, index: int, field: str) -> np.random.Generator:
    """The generator that belongs to a field of one example in one of its passes, from 0."""
    key = Key(zlib.crc32(field.encode()) << 32 | seed, shown << 40 | index)
    return np.random.Generator(np.random.Philox(key))


class Broken:
    """Counts and names (name -> reason) the examples that could not be read.

    Of several processes each reads its own rows: counts are those of all, names those of this one.
    The run stops above `max_share` of all examples seen.
    """

    def __init__(self, max_share: float):
        self.names: dict[str, str] = {}
        self._max_share, self._seen, self._broken = max_share, 0, 0
        self._lock = threading.Lock()

    @property
    def seen(self) -> int:
        """Examples read, broken ones included; all processes read as many."""
        return self._seen * processes.count()

    @property
    def count(self) -> int:
        """How often a broken one was met."""
        return processes.total("broken", self._broken)

    def add(self, seen: int, broken: Mapping[str, str]) -> None:
        """Adds `seen` examples, of which some were broken (name -> reason).

        Raises:
            UserError: there are too many broken ones by now; lists them.
        """
        with self._lock:
            self._seen += seen
            self._broken += len(broken)
            self.names.update(broken)
            if not broken:
                return
            count, different = self.count, self._different()  # both tell the other processes
            if count > self._max_share * self.seen and different > TOLERATED_BAD:
                raise UserError(
                    f"{count} of {self.seen} examples could not be read, more than "
                    f"data.max_bad_share={self._max_share}: {self._listed()}; mend them, or raise "
                    "data.max_bad_share.")

    def note(self) -> str:
        """A sentence for the end of a run; '' if nothing was broken."""
        if not self.count:
            return ""
        return f"{self.count} of {self.seen} reads failed and were replaced: {self._listed()}"

    def _different(self) -> int:
        """How many broken ones there are; one that several processes met counts for each."""
        return processes.total("broken names", len(self.names))

    def _listed(self) -> str:
        listed = [f"{name} ({why})" for name, why in self.names.items()][:LISTED_BAD]
        others = self._different() - len(listed)
        return " and ".join(filter(None, [", ".join(listed), others and f"{others} others"]))


class TrainPipeline:
    """Training batches, addressed by step.

    Args:
        source: the examples.
        fields: field name -> field, opened on the source (see `fields.open_fields`).
        data_config: the `data` block of the config.
        batch_size: global batch size B. seed: of order and random draws.
        rows: int array, which rows of the global batch to make; None: all.

    Raises:
        UserError: the source has fewer examples than one batch.
    """

    def __init__(self, source: Source, fields: Mapping[str, Field], data_config, batch_size: int,
                 seed: int, rows: np.ndarray | None = None):
        if len(source) < batch_size:
            raise UserError(f"The data source has {len(source)} examples, fewer than one batch of "
                            f"{batch_size}; lower batch_size or give more data.")
        self.broken = Broken(data_config.max_bad_share)
        self.steps_per_epoch = len(source) // batch_size
        self._source, self._fields = source, fields
        self._batch_size, self._seed = batch_size, seed
        self._workers = num_workers(data_config)
        self._rows = slice(None) if rows is None else rows
        self._order = functools.lru_cache(maxsize=2)(
            functools.partial(source.order, seed, rows=self.steps_per_epoch * batch_size))

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batch of a step: examples int64 [B], and how often each was shown before [B].

        What is left over at the end of an epoch is dropped.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = slice(position * self._batch_size, (position + 1) * self._batch_size)
        indices, passes = self._order(epoch)
        return indices[rows], passes[rows]

    def batch(self, step: int, parallel_map: Callable[..., Iterable] = map) -> dict:
        """This process's rows of the batch of a step: the arrays of all fields `[b, ...]` by name.

        The next good example takes the place of one that cannot be read. Steps count from 0;
        `parallel_map` is `map`, or the ordered map of a thread pool.

        Raises:
            UserError: too many examples are broken.
        """
        indices, passes = (part[self._rows].tolist() for part in self.examples(step))
        batch, broken = self._load(passes, indices, parallel_map)
        for _ in range(len(self._source)):
            if not broken:
                return batch
            for row in broken:
                indices[row] = (indices[row] + 1) % len(self._source)
            again, still = self._load([passes[row] for row in broken],
                                      [indices[row] for row in broken], parallel_map)
            for name, array in again.items():
                batch[name][broken] = array
            broken = [broken[i] for i in still]
        raise UserError("No example of the data source can be read; check data.source.")

    def iterate(self, start: int, stop: int) -> Iterator[dict]:
        """Batches of the steps start..stop-1, made ahead in background threads, see `prefetch`."""
        return prefetch(self.batch, range(start, stop), self._workers)

    def notes(self) -> list[str]:
        """What could not be used of the data, a sentence each."""
        notes = [self.broken.note(), *(note for f in self._fields.values() for note in f.notes())]
        return [note for note in notes if note]

    def _load(self, passes, indices, parallel_map) -> tuple[dict, list[int]]:
        """The arrays of some examples, and the rows that are broken."""
        batch, problems = {}, {}  # problems: row -> reason, of the first field that has one
        for name, field in self._fields.items():
            values = [functools.partial(self._source.get, index, name) for index in indices]
            rngs = (example_rng(self._seed, *row, name) for row in zip(passes, indices))
            arrays, wrong = field.load(values, rngs, True, parallel_map)
            batch |= arrays
            problems = {row: why for row, why in enumerate(wrong) if why} | problems
        self.broken.add(len(indices), {self._source.name(indices[row]): why
                                       for row, why in problems.items()})
        return batch, sorted(problems)
