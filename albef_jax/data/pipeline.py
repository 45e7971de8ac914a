"""From a step number to a batch: order, draws, loading, background prefetch, broken images.

A batch is a pure function of (seed, step): there is no iterator state to save. A host makes
the rows of the same global batch that its devices hold.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from albef_jax.data.images.pillow import BlindEngine, PillowEngine, draw_train
from albef_jax.data.sources.base import Source
from albef_jax.data.text import Tokenizer, clean
from albef_jax.errors import UserError

PREFETCH = 2  # batches that are made ahead
TOLERATED_BAD = 3  # so few distinct broken images never stop a run
LISTED_BAD = 20


def example_rng(seed: int, shown: int, index: int) -> np.random.Generator:
    """The generator that belongs to one example in one of its passes, counted from 0."""
    key = np.array([seed, (shown << 40) | index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def make_engine(data_config):
    """The image engine of a config: 'tf', 'pillow', or 'auto' (tf if TensorFlow is installed).

    Raises:
        UserError: the engine is unknown, or TensorFlow is asked for and absent.
    """
    if data_config.blind:
        return BlindEngine(data_config.image_size)
    name = data_config.engine
    has_tf = importlib.util.find_spec("tensorflow") is not None
    if name == "auto":
        name = "tf" if has_tf else "pillow"
    workers = num_workers(data_config)
    if name == "pillow":
        return PillowEngine(data_config.image_size, workers)
    if name != "tf":
        raise UserError(f"data.engine={name!r} is unknown; use 'auto', 'tf' or 'pillow'.")
    if not has_tf:
        raise UserError("data.engine='tf' needs TensorFlow; install it or use 'pillow'.")
    from albef_jax.data.images.tf import TfEngine  # TensorFlow is slow to import, and optional

    return TfEngine(data_config.image_size, workers)


def num_workers(data_config) -> int:
    """Threads that load images: `data.workers`, or one per core if that is 0."""
    return data_config.workers or os.cpu_count() or 1


@dataclasses.dataclass
class BadImages:
    """Count and names of the images that could not be read.

    Args:
        max_share: above this share of all images seen the run stops.
    """

    max_share: float
    seen: int = 0
    count: int = 0
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> reason

    def __post_init__(self):
        self._lock = threading.Lock()

    def add(self, seen: int, broken: dict[str, str]) -> None:
        """Adds `seen` images, of which some were broken (name -> reason).

        Raises:
            UserError: there are too many broken ones by now; lists them.
        """
        with self._lock:
            self.seen += seen
            self.count += len(broken)
            self.names.update(broken)
            too_many = self.count > self.max_share * self.seen
            if broken and too_many and len(self.names) > TOLERATED_BAD:
                raise UserError(self._message())

    def _message(self) -> str:
        listed = [f"{name} ({why})" for name, why in list(self.names.items())[:LISTED_BAD]]
        more = len(self.names) - len(listed)
        return (
            f"{self.count} of {self.seen} images could not be read, more than "
            f"data.max_bad_share={self.max_share}: {', '.join(listed)}"
            f"{f' and {more} more' if more else ''}; mend them, or raise data.max_bad_share."
        )


class Views:
    """A source of examples with several images, seen as a source of images."""

    def __init__(self, source: Source):
        self._source = source

    def image(self, row: int) -> bytes | np.ndarray:
        """See `Source.view`."""
        return self._source.view(*divmod(row, self._source.views))

    def name(self, row: int) -> str:
        """A name of the image."""
        return self._source.view_name(*divmod(row, self._source.views))


def view_rows(source: Source, indices: list[int]) -> tuple[Source | Views, list[int]]:
    """All images of some examples, as something with `image` and `name`, and its rows."""
    if source.views == 1:
        return source, indices
    return Views(source), [index * source.views + v for index in indices
                           for v in range(source.views)]


class TrainPipeline:
    """Training batches, addressed by step.

    Args:
        source: the examples.
        tokenizer: captions to ids.
        data_config: the `data` block of the config.
        batch_size: global batch size B.
        seed: seed of order and augmentation.
        rows: int array, which rows of the global batch to make; None: all.
        needs: fields of `Source.fields` that a batch shall have.

    Raises:
        UserError: the source has fewer examples than one batch.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        data_config,
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
        needs: Sequence[str] = (),
    ):
        if len(source) < batch_size:
            raise UserError(
                f"The data source has {len(source)} examples, fewer than one batch of "
                f"{batch_size}; lower batch_size or give more data."
            )
        self.bad = BadImages(data_config.max_bad_share)
        self.steps_per_epoch = len(source) // batch_size
        self._source, self._tokenizer, self._config = source, tokenizer, data_config
        self._batch_size, self._seed, self._needs = batch_size, seed, needs
        self.skipped_answers: set[str] = set()  # those longer than `data.answer_length`
        self._rows = slice(None) if rows is None else rows
        self._order = functools.lru_cache(maxsize=2)(
            functools.partial(source.order, seed, rows=self.steps_per_epoch * batch_size)
        )
        self._engine = make_engine(data_config)
        self.engine_name = self._engine.name

    def examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batch of a step: examples int64 [B], and how often each was shown before [B].

        What is left over at the end of an epoch is dropped.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = slice(position * self._batch_size, (position + 1) * self._batch_size)
        indices, passes = self._order(epoch)
        return indices[rows], passes[rows]

    def batch(self, step: int, parallel_map: Callable[..., Iterable] = map) -> dict:
        """This process's rows of the batch of a step.

        Args:
            step: from 0.
            parallel_map: `map`, or the ordered map of a thread pool.

        Returns:
            image uint8 [b, h, w, 3] ([b, v, h, w, 3] with several views), text_ids int32 [b, l],
            text_mask int32 [b, l] (1 = real), image_id int32 [b] (equal = same image); and what
            is needed: label int32 [b]; answer_ids, answer_mask int32 [b, a, l] and answer_weight
            float32 [b, a], 0 where there is none.

        Raises:
            UserError: too many images are broken.
        """
        indices, passes = (part[self._rows].tolist() for part in self.examples(step))
        images = self._load_images(passes, indices, parallel_map)
        ids_bl, mask_bl = self._tokenizer.encode(
            [self._caption(shown, index) for shown, index in zip(passes, indices)],
            self._config.text_length,
            self._config.sep,
        )
        image_ids = [self._source.image_id(index) for index in indices]
        batch = {
            "image": images,
            "text_ids": ids_bl,
            "text_mask": mask_bl,
            "image_id": np.array(image_ids, np.int32),
        }
        if "label" in self._needs:
            batch["label"] = np.array([self._source.label(index) for index in indices], np.int32)
        return batch | (self._answers(indices) if "answers" in self._needs else {})

    def iterate(self, start: int, stop: int) -> Iterator[dict]:
        """Batches of the steps start..stop-1, made ahead in background threads.

        The threads only ever do work that ends by itself, so nothing can block on a consumer that
        went away. Closing the iterator (or an exception in its consumer's loop) ends them.
        """
        return prefetch(self.batch, range(start, stop), num_workers(self._config))

    def _load_images(self, passes: list[int], indices: list[int], parallel_map) -> np.ndarray:
        """Images uint8 [b, (v,) h, w, 3]; puts the next good example in the place of a broken one.

        `indices` is changed accordingly.
        """
        images, broken = self._try_images(passes, indices, parallel_map)
        for _ in range(len(self._source)):
            if not broken:
                return images
            for row in broken:
                indices[row] = (indices[row] + 1) % len(self._source)
            again, still = self._try_images(
                [passes[row] for row in broken], [indices[row] for row in broken], parallel_map
            )
            images[broken] = again
            broken = [broken[i] for i in still]
        raise UserError("No image of the data source can be read; check data.source.")

    def _try_images(self, passes, indices, parallel_map) -> tuple[np.ndarray, list[int]]:
        """Images, and the rows that are broken."""
        views = self._source.views
        draws = []
        for shown, index in zip(passes, indices):
            rng = self._rng(shown, index)[1]
            draws += [draw_train(rng, self._config) for _ in range(views)]
        source, rows = view_rows(self._source, indices)
        images, problems = self._engine.load(source, rows, draws, parallel_map)
        broken = [row for row, problem in enumerate(problems) if problem]
        self.bad.add(len(rows), {source.name(rows[row]): problems[row] for row in broken})
        if views > 1:
            images = images.reshape(len(indices), views, *images.shape[1:])
        return images, sorted({row // views for row in broken})

    def _caption(self, shown: int, index: int) -> str:
        """The caption of this pass, cleaned."""
        captions = self._source.captions(index)
        choice = int(self._rng(shown, index)[0] * len(captions))
        return clean(captions[choice], self._source.cleaning, self._config.max_words)

    def _answers(self, indices: list[int]) -> dict:
        """Answers that fit into `answer_length`, the heaviest `max_answers` of each example."""
        length, most = self._config.answer_length, self._config.max_answers
        chosen = [sorted(self._source.answers(index), key=lambda answer: -answer[1])[:most]
                  for index in indices]
        texts = [text for answers in chosen for text, _ in answers]
        ids_nl, mask_nl = self._tokenizer.encode(texts, length + 1, sep=True)
        fits_n = mask_nl.sum(axis=1) <= length
        self.skipped_answers.update(text for text, fits in zip(texts, fits_n) if not fits)
        row_n = np.repeat(np.arange(len(chosen)), [len(answers) for answers in chosen])
        slot_n = np.concatenate([np.arange(len(answers)) for answers in chosen])
        ids = np.full((len(chosen), most, length), self._tokenizer.pad_id, np.int32)
        ids[..., 0] = self._tokenizer.cls_id  # an empty slot is [CLS]: its attention has a key
        mask = np.zeros_like(ids)
        mask[..., 0] = 1
        weight = np.zeros((len(chosen), most), np.float32)
        ids[row_n, slot_n], mask[row_n, slot_n] = ids_nl[:, :length], mask_nl[:, :length]
        weight[row_n, slot_n] = fits_n * [weight for answers in chosen for _, weight in answers]
        return {"answer_ids": ids, "answer_mask": mask, "answer_weight": weight}

    def _rng(self, shown: int, index: int) -> tuple[float, np.random.Generator]:
        """The number that chooses the caption, and the generator of the image's draws."""
        rng = example_rng(self._seed, shown, index)
        return rng.random(), rng


def prefetch(make: Callable, items: Iterable[int], workers: int) -> Iterator[dict]:
    """Yields make(item, parallel_map) for each item in order, `PREFETCH` items ahead."""
    items = iter(items)
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, "albef-data")
        makers = ThreadPoolExecutor(PREFETCH, "albef-batch")
        stack.callback(pool.shutdown)
        stack.callback(makers.shutdown, cancel_futures=True)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # runs first
        pending = collections.deque()
        for item in items:
            pending.append(makers.submit(make, item, pool.map))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
