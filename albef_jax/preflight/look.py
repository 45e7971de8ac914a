"""What a source holds, value by value, counted and printed for people: see `check`."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from albef_jax.data.images.pillow import BrokenImage, decode, is_turned, open_image, read
from albef_jax.data.sources.base import Source, Value, reason
from albef_jax.data.sources.regions import Regions, clipped
from albef_jax.data.text import SPECIAL_TOKENS, clean
from albef_jax.errors import listed

SMALL_SIDE = 16  # pixels; the side of one patch: hardly anything can be seen
LISTED = 10
OFTEN = 10  # values are listed where each is there so often on average
CHUNK = 1024  # values that are handed to the threads at once
BAR = 40  # characters
WORD_BINS = (0, 1, 5, 10, 15, 20, 25, 30)
SIDE_BINS = (0, 16, 32, 64, 128, 256, 512, 1024)


class Images(NamedTuple):
    """What was seen of the different images of a source, which are numbered from 0."""

    name: Callable[[int], str]  # of an image
    sides: np.ndarray  # the shorter ones in pixels, int32 [n]; 0 of what cannot be read
    digests: np.ndarray  # hash of the pixels, 16 bytes [n]
    broken: dict[int, str]  # number -> reason
    turned: list[int]  # numbers of those with an EXIF orientation

    @property
    def count(self) -> int:
        """Number of images, those that cannot be read included."""
        return len(self.sides)

    def broken_names(self) -> dict[str, str]:
        """Name -> reason."""
        return {self.name(number): why for number, why in self.broken.items()}


class Texts(NamedTuple):
    """What was seen of the texts of a source."""

    words: np.ndarray  # how many each has when it is cleaned, int64 [m]
    letterless: Counter  # texts that keep words, but no letter
    special: Counter  # texts that hold what looks like a special token


class Values(NamedTuple):
    """What was seen of a field of a source."""

    counts: Counter  # a thing -> how often it is there
    per_row: list[int]  # how many things each row has; empty where it is always one
    broken: dict[str, str]  # name of an example -> reason


def images_of(source: Source, title: str, workers: int) -> Images:
    """Decodes every image once, however many rows show it, with a progress bar of that title."""
    places = _places(source)

    def image(number: int) -> tuple[str, Value]:
        row, view = places[number].tolist()
        return source.views(row)[view]

    found = Images(lambda number: image(number)[0], np.zeros(len(places), np.int32),
                   np.zeros(len(places), "V16"), {}, [])
    def look(number: int):
        return _look(image(number)[1])

    for number, seen in enumerate(_in_threads(look, len(places), workers, title, "image")):
        if isinstance(seen, str):
            found.broken[number] = sys.intern(seen)
        else:
            found.sides[number], found.digests[number], turned = seen
            found.turned.extend([number] * turned)
    return found


def texts_of(source: Source) -> Texts:
    """Reads every text."""
    cleaning = source.fields["text"].get("cleaning", "caption")
    words, letterless, special = [], Counter(), Counter()
    for row in range(len(source)):
        for text in source.get(row, "text"):
            cleaned = clean(text, cleaning, sys.maxsize)
            words.append(len(cleaned.split()))
            if words[-1] and not any(map(str.isalpha, cleaned)):
                letterless[text] += 1
            if any(token in text for token in SPECIAL_TOKENS):
                special[text] += 1
    return Texts(np.array(words, np.int64), letterless, special)


def values_of(source: Source, field: str, title: str, workers: int) -> Values:
    """Reads a field of every row; as `images_of`."""
    def look(row: int):
        try:
            value = source.get(row, field)
        except OSError as error:
            return error
        if isinstance(value, Regions):
            return _regions(value)
        return [_thing(item) for item in value] if isinstance(value, list) else _thing(value)

    found = Values(Counter(), [], {})
    for row, seen in enumerate(_in_threads(look, len(source), workers, title, field)):
        if isinstance(seen, OSError):
            found.broken[source.name(row)] = reason(seen)
        elif isinstance(seen, list):
            found.counts.update(seen)
            found.per_row.append(len(seen))
        else:
            found.counts[seen] += 1
    return found


def print_modalities(source: Source) -> None:
    """How many examples have each of the optional fields of a source, and which together."""
    together = Counter(source.modalities(row) for row in range(len(source)))
    optional = [name for name, facts in source.fields.items() if facts.get("optional")]
    for name in optional:
        having = sum(count for names, count in together.items() if name in names)
        print(f"  {name}: {having} of {len(source)} have it")
    for names, count in together.most_common(LISTED):
        print(f"  {count:>9} with {' + '.join(names)}" + (
            " (everything)" if len(names) == len(optional) else ""))


def print_images(images: Images) -> None:
    """What is wrong with images."""
    broken = images.broken_names()
    missing = [name for name, why in broken.items() if why == "missing"]
    damaged = {name: why for name, why in broken.items() if why != "missing"}
    small = np.flatnonzero((images.sides > 0) & (images.sides < SMALL_SIDE))
    again = _equal(images)
    _print_count("missing images", len(missing), missing)
    _print_count("broken images", len(damaged), reasons(damaged))
    _print_count("images with an EXIF orientation, which data.exif=False ignores",
                 len(images.turned), map(images.name, images.turned))
    _print_count(f"images with a side below {SMALL_SIDE} pixels", len(small),
                 map(images.name, small))
    _print_count("images again under another name, by equal pixels",
                 sum(len(numbers) - 1 for numbers in again),
                 (" = ".join(map(images.name, numbers)) for numbers in again))


def print_texts(texts: Texts, most: int) -> None:
    """How long texts are, how many have no or more than `most` words, and which are none."""
    _print_count("captions without a word once they are cleaned", np.sum(texts.words == 0))
    _print_count("captions without a letter", texts.letterless.total(),
                 map(repr, texts.letterless))
    _print_count(f"captions with {listed(SPECIAL_TOKENS, len(SPECIAL_TOKENS))}, which are read as "
                 "text", texts.special.total(), map(repr, texts.special))
    _print_count(f"captions cut to {most} words", np.sum(texts.words > most))
    print("  words per caption")
    _print_bars(texts.words, WORD_BINS)


def print_sides(images: Images) -> None:
    """How large images are."""
    print("  shorter side of the images, in pixels")
    _print_bars(images.sides[images.sides > 0], SIDE_BINS)


def print_values(field: str, values: Values, class_names: Sequence[str] | None) -> None:
    """How much there is of a field, and of what, where that is not too much."""
    counts, total = values.counts, values.counts.total()
    named = dict(enumerate(class_names or ()))
    if named:
        order = [*named, *(thing for thing in counts if thing not in named)]
    else:
        order = [thing for thing, _ in counts.most_common()] * (OFTEN * len(counts) <= total)
    things = listed((f"{named.get(thing, thing)} ({counts[thing]})" for thing in order), LISTED)
    per_row = values.per_row and f", {min(values.per_row)} to {max(values.per_row)} per row"
    print(f"  {field}: {total}{per_row or ''}, {len(counts)} different{things and ': '}{things}")
    _print_count(f"broken values of {field}", len(values.broken), reasons(values.broken))


def print_shared(found: dict[str, Images]) -> None:
    """Images whose pixels are equal in two parts: a held-out one that training shows."""
    firsts = {}  # digests of the good images of each part, and the first image of each
    for name, part in found.items():
        good = np.flatnonzero(part.sides)
        digests, first = np.unique(part.digests[good], return_index=True)
        firsts[name] = digests, good[first]
    for one, other in itertools.combinations(found, 2):
        _, mine, theirs = np.intersect1d(firsts[one][0], firsts[other][0], True, True)
        pairs = sorted(zip(firsts[one][1][mine], firsts[other][1][theirs]))
        if pairs:
            shared = (f"{found[one].name(a)} = {found[other].name(b)}" for a, b in pairs)
            print(f"images in {one} and in {other}, by equal pixels: {len(pairs)} "
                  f"({listed(shared, LISTED)})")


def reasons(broken: dict[str, str]) -> Iterator[str]:
    """Names with what is wrong."""
    return (f"{name} ({why})" for name, why in broken.items())


def _in_threads(look: Callable, count: int, workers: int, title: str, unit: str) -> Iterator:
    """`look(number)` of each number in order, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool:
        chunks = (range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))
        seen = itertools.chain.from_iterable(pool.map(look, chunk) for chunk in chunks)
        yield from tqdm(seen, title, count, leave=False, unit=unit, disable=None)


def _places(source: Source) -> np.ndarray:
    """Where each different image is: row and view, int [n, 2]."""
    rows = np.arange(len(source))
    if "image_id" in source.fields:
        rows = np.sort(np.unique(source.image_ids(), return_index=True)[1])
    if source.fields["image"].get("views", 1) == 1:
        return np.stack([rows, np.zeros_like(rows)], axis=1)
    firsts: dict[str, tuple[int, int]] = {}  # one image may be part of many examples
    for row in rows.tolist():
        for view, (name, _) in enumerate(source.views(row)):
            firsts.setdefault(name, (row, view))
    return np.array([*firsts.values()])


def _look(value: Value) -> tuple[int, bytes, bool] | str:
    """The shorter side, a hash of the pixels, and whether there is an EXIF orientation; or what is
    wrong with the image."""
    try:
        opened = open_image(read(value))
        turned, image = is_turned(opened), decode(opened)
    except BrokenImage as error:
        return str(error)
    width = b"%d" % image.width  # other shapes can have the same bytes
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, person=width).digest()
    return min(image.size), digest, turned


def _thing(value):
    """What is counted of a value: a text, a number or several; of arrays and the rest the kind."""
    if value is None:
        return "missing"
    if isinstance(value, (str, int, float, np.generic)):
        return value
    if isinstance(value, tuple):
        is_answer = value and isinstance(value[0], str)  # its weight does not matter
        return value[0] if is_answer else tuple(map(_thing, value))
    shape = f" {list(value.shape)}" if hasattr(value, "shape") else ""
    return f"{getattr(value, 'dtype', type(value).__name__)}{shape}"


def _regions(value: Regions) -> list[str]:
    """What is counted of each region: how wide its features are, its class, or that it is empty."""
    classes = value.classes if value.classes is not None else itertools.repeat(None)
    _, inside = clipped(value.boxes, value.size)
    return [f"{value.features.shape[1]} numbers" + ("" if number is None else f" of class {number}")
            if seen else "no area inside the image" for number, seen in zip(classes, inside)]


def _print_count(what: str, count: int, names: Iterable[str] = ()) -> None:
    """A line about what there is any of."""
    if count:
        names = listed(names, LISTED)
        print(f"  {what}: {count}" + (f" ({names})" if names else ""))


def _print_bars(values: Sequence[int] | np.ndarray, bins: tuple[int, ...]) -> None:
    """A histogram; bins are given by their least values, the last one is open."""
    counts = np.histogram(values, [*bins, np.inf])[0]
    labels = [f"{low}-{end - 1}".removesuffix(f"-{low}") for low, end in zip(bins, bins[1:])]
    for label, count in zip([*labels, f"{bins[-1]}+"], counts):
        if count:
            bar = "#" * max(1, round(BAR * count / counts.max()))
            print(f"  {label:>10} {count:>9} {bar}")


def _equal(images: Images) -> list[np.ndarray]:
    """Numbers of images with equal pixels, in order of the first one, each group ascending."""
    good = np.flatnonzero(images.sides)
    _, group, counts = np.unique(images.digests[good], return_inverse=True, return_counts=True)
    several = counts[group] > 1
    good, group = good[several], group[several]
    order = np.argsort(group, kind="stable")
    groups = np.split(good[order], np.flatnonzero(np.diff(group[order])) + 1) if len(good) else []
    return sorted(groups, key=lambda numbers: numbers[0])
