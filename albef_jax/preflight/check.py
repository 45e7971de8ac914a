"""Looks at every caption and every image of a data set before a run does: `albef data check`."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from albef_jax.config import check_model, check_values, default_config
from albef_jax.data.images.pillow import BrokenImage, decode, open_image, read
from albef_jax.data.pipeline import (
    LISTED_BAD,
    BadImages,
    TrainPipeline,
    Views,
    num_workers,
    view_rows,
)
from albef_jax.data.sources import KINDS, Source, resolve_source
from albef_jax.data.sources.manifest import ManifestSource
from albef_jax.data.text import clean_caption, make_tokenizer
from albef_jax.errors import UserError

SMALL_SIDE = 16  # pixels; the side of one patch: hardly anything can be seen
LISTED = 10
CHUNK = 1024  # images that are handed to the threads at once
BAR = 40  # characters
WORD_BINS = (0, 1, 5, 10, 15, 20, 25, 30)
SIDE_BINS = (0, 16, 32, 64, 128, 256, 512, 1024)


class Part(NamedTuple):
    """One source to check.

    block: as given to `make_source`.
    source: what of it can be read.
    problems: what is wrong with it, a sentence each.
    held_out: an evaluation reads it, and takes no broken image.
    """

    name: str
    block: Mapping | str
    source: Source | None
    problems: list[str]
    held_out: bool


class Found(NamedTuple):
    """What was seen of the different images of a part, which are numbered from 0.

    name: of an image.
    sides: shorter side in pixels, int32 [n]; 0 of an image that cannot be read.
    digests: hash of the pixels, 16 bytes [n].
    broken: number -> reason.
    """

    name: Callable[[int], str]
    sides: np.ndarray
    digests: np.ndarray
    broken: dict[int, str]

    @property
    def count(self) -> int:
        """Number of images, those that cannot be read included."""
        return len(self.sides)

    def broken_names(self, why: Callable[[str], bool] = bool) -> dict[str, str]:
        """Name -> reason, of those with such a reason."""
        return {self.name(i): reason for i, reason in self.broken.items() if why(reason)}


def check(manifests: Sequence[str], image_roots: Sequence[str] = (), config=None) -> list[str]:
    """Prints what the data holds.

    Args:
        manifests: JSON manifests, or short forms of other sources such as `tfds:NAME:SPLIT`.
        image_roots: of the manifests; without any, their own folders.
        config: whose training and evaluation sources are checked too, by its own limits.

    Returns:
        Why training would not start, a sentence each; empty if it would.

    Raises:
        UserError: there is nothing to check.
    """
    parts = [_open(name, source_block(name, image_roots)) for name in dict.fromkeys(manifests)]
    own = _parts_of(config) if config else []
    parts += own
    if not parts:
        raise UserError("There is nothing to check; name manifests, or give a --config.")
    data_config = (config or default_config()).data
    problems, found = [], {}
    for part in parts:
        problems += part.problems
        if part.source is not None and len(part.source):
            found[part.name] = _look_at_images(part, num_workers(data_config))
            _print_part(part, found[part.name], data_config.max_words)
            problems += _too_many_broken(part, found[part.name], data_config.max_bad_share)
    _print_shared(found)
    return problems + (_refusals(config, *own) if config else [])


def source_block(name: str, image_roots: Sequence[str]) -> Mapping | str:
    """The source that an argument of the command names."""
    if name.partition(":")[0] in KINDS and not os.path.exists(name):
        return name
    return {"kind": "json", "files": (name,), "image_roots": tuple(image_roots)}


def _open(name: str, block: Mapping | str, held_out: bool = False) -> Part:
    """A part; of manifests also what stands beside wrong rows."""
    try:
        kind, options = resolve_source(block)
        if issubclass(kind, ManifestSource):
            return Part(name, block, *kind.checked(**options), held_out)
        return Part(name, block, kind(**options), [], held_out)
    except UserError as error:
        return Part(name, block, None, [str(error)], held_out)


def _parts_of(config) -> list[Part]:
    """The training source of a config and the different sources of its evaluations."""
    parts = [_open("data.source", config.data.source)]
    for name, block in config.evals.items():
        source = block.get("source")
        if source and source not in [part.block for part in parts[1:]]:
            parts.append(_open(f"evals.{name}.source", source, held_out=True))
    return parts


def _look_at_images(part: Part, workers: int) -> Found:
    """Decodes every image once, however many rows show it."""
    firsts = np.sort(np.unique(part.source.image_ids(), return_index=True)[1])
    if part.source.views > 1:  # one image may be part of many examples
        images, rows = view_rows(part.source, firsts.tolist())
        rows = np.array(list({images.name(row): row for row in rows}.values()))
    else:
        images, rows = part.source, firsts
    found = Found(lambda number: images.name(int(rows[number])), np.zeros(len(rows), np.int32),
                  np.zeros(len(rows), "V16"), {})
    with ThreadPoolExecutor(workers) as pool, tqdm(
        total=len(rows), desc=part.name, unit="image", leave=False, disable=None
    ) as bar:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK].tolist()
            looks = pool.map(lambda row: _look(images, row), chunk)
            for number, seen in enumerate(looks, start):
                if isinstance(seen, str):
                    found.broken[number] = sys.intern(seen)
                else:
                    found.sides[number], found.digests[number] = seen
                bar.update()
    return found


def _look(source: Source | Views, index: int) -> tuple[int, bytes] | str:
    """The shorter side, and a hash of the pixels; or what is wrong with the image."""
    try:
        image = decode(open_image(read(source, index)))
    except BrokenImage as error:
        return str(error)
    width = b"%d" % image.width  # other shapes can have the same bytes
    return min(image.size), hashlib.blake2b(image.tobytes(), digest_size=16, person=width).digest()


def _too_many_broken(part: Part, found: Found, max_bad_share: float) -> list[str]:
    """The sentence with which training or an evaluation would stop, if it would."""
    if part.held_out and found.broken:
        listed = _listed(_reasons(found.broken_names()), LISTED_BAD)
        return [
            f"{part.name}: {len(found.broken)} of {found.count} images cannot be read, and an "
            f"evaluation needs all: {listed}; mend them or remove their rows."
        ]
    try:
        BadImages(max_bad_share).add(found.count, found.broken_names())
    except UserError as error:
        return [f"{part.name}: {error}"]
    return []


def _refusals(config, training: Part, *held_out: Part) -> list[str]:
    """What a run of this config says when it starts, as far as data decides it."""
    from albef_jax.evaluators import make_evaluator  # JAX takes a second
    from albef_jax.tasks import check_fields

    problems = []

    def attempt(make, *arguments):
        try:
            return make(*arguments)
        except UserError as error:
            problems.append(str(error))

    attempt(check_values, config)
    attempt(check_model, config)
    if not training.source or not len(training.source):
        return problems
    attempt(check_fields, config, training.source)
    tokenizer = attempt(make_tokenizer, config.data, training.source)
    if tokenizer:
        attempt(
            TrainPipeline, training.source, tokenizer, config.data, config.batch_size, config.seed
        )
        reported = [part.block for part in held_out if part.problems]
        for block in config.evals.values():
            if block.get("source") not in reported:
                attempt(make_evaluator, block, config.data, tokenizer, config.seed)
    return list(dict.fromkeys(problems))


def _print_part(part: Part, found: Found, max_words: int) -> None:
    source = part.source
    words = np.fromiter(
        (
            len(clean_caption(text, sys.maxsize).split())
            for index in range(len(source))
            for text in source.captions(index)
        ),
        np.int64,
    )
    missing = list(found.broken_names(lambda why: why == "missing"))
    damaged = found.broken_names(lambda why: why != "missing")
    again = _equal(found)
    repeats = sum(len(numbers) - 1 for numbers in again)
    small = np.flatnonzero((found.sides > 0) & (found.sides < SMALL_SIDE))
    print(f"{part.name}: {len(source)} rows, {found.count} images, {len(words)} captions")
    for what, count, names in (
        ("missing images", len(missing), missing),
        ("broken images", len(damaged), _reasons(damaged)),
        (f"images with a side below {SMALL_SIDE} pixels", len(small), map(found.name, small)),
        ("images again under another name, by equal pixels", repeats,
         (" = ".join(map(found.name, numbers)) for numbers in again)),
        ("captions without a word", np.sum(words == 0), ()),
        (f"captions cut to {max_words} words", np.sum(words > max_words), ()),
    ):
        if count:
            listed = _listed(names)
            print(f"  {what}: {count}" + (f" ({listed})" if listed else ""))
    print("  words per caption")
    _print_bars(words, WORD_BINS)
    print("  shorter side of the images, in pixels")
    _print_bars(found.sides[found.sides > 0], SIDE_BINS)


def _print_bars(values: Sequence[int] | np.ndarray, bins: tuple[int, ...]) -> None:
    """A histogram; bins are given by their least values, the last one is open."""
    counts = np.histogram(values, [*bins, np.inf])[0]
    labels = [f"{low}-{end - 1}".removesuffix(f"-{low}") for low, end in zip(bins, bins[1:])]
    for label, count in zip([*labels, f"{bins[-1]}+"], counts):
        if count:
            bar = "#" * max(1, round(BAR * count / counts.max()))
            print(f"  {label:>10} {count:>9} {bar}")


def _equal(found: Found) -> list[np.ndarray]:
    """Numbers of images with equal pixels, in order of the first one, each group ascending."""
    good = np.flatnonzero(found.sides)
    _, group, counts = np.unique(found.digests[good], return_inverse=True, return_counts=True)
    several = counts[group] > 1
    good, group = good[several], group[several]
    order = np.argsort(group, kind="stable")
    groups = np.split(good[order], np.flatnonzero(np.diff(group[order])) + 1) if len(good) else []
    return sorted(groups, key=lambda numbers: numbers[0])


def _print_shared(found: dict[str, Found]) -> None:
    """Images whose pixels are equal in two parts: a held-out one that training shows."""
    firsts = {}  # digests of the good images of each part, and the first image of each
    for name, part in found.items():
        good = np.flatnonzero(part.sides)
        digests, first = np.unique(part.digests[good], return_index=True)
        firsts[name] = digests, good[first]
    names = list(found)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            _, mine, theirs = np.intersect1d(firsts[one][0], firsts[other][0], True, True)
            pairs = sorted(zip(firsts[one][1][mine], firsts[other][1][theirs]))
            if pairs:
                shared = (f"{found[one].name(a)} = {found[other].name(b)}" for a, b in pairs)
                print(
                    f"images in {one} and in {other}, by equal pixels: {len(pairs)} "
                    f"({_listed(shared)})"
                )


def _reasons(broken: dict[str, str]) -> Iterator[str]:
    return (f"{name} ({why})" for name, why in broken.items())


def _listed(items: Iterable[str], limit: int = LISTED) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
