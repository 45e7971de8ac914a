"""Texts of millions of manifest rows as columns in files, mapped into memory.

Large manifests are parsed once; the columns are kept in the user's cache. Folder of an index:

    names.bin, captions.bin        texts end to end, UTF-8
    names.npy, captions.npy        where each text begins, int64 [number of texts + 1]
    rows.npy                       the first caption of each row, int64 [n + 1]
    image_ids.npy                  int32 [n]; equal for equal names, by first appearance
    index.json                     digests of the manifests, and a checksum of every file above
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath
from filelock import FileLock, Timeout
from tqdm import tqdm

from albef_jax.data.sources.json_rows import read_rows
from albef_jax.errors import UserError

CACHED_FROM = 1 << 26  # bytes; smaller manifests are parsed at every start
LISTED = 1000  # wrong rows of a manifest that get a sentence each
VERSION = 1  # of the files; another one is another cache

Row = tuple[str, list[str]]
"""Image name and captions."""


class Texts:
    """Many texts in one array.

    Args:
        data: uint8 [bytes]. starts: int64 [n + 1].
    """

    def __init__(self, data: np.ndarray, starts: np.ndarray):
        self._data, self._starts = memoryview(data), starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._starts[index : index + 2]
        return str(self._data[start:end], "utf-8", "surrogatepass")


class Index(NamedTuple):
    """The columns of manifests.

    rows: int64 [n + 1], where the captions of each row begin.
    image_ids: int32 [n].
    digests: of the contents, of each manifest that could be read, by path.
    problems: a sentence about each manifest and row that is wrong.
    """

    names: Texts
    captions: Texts
    rows: np.ndarray
    image_ids: np.ndarray
    digests: dict[str, bytes]
    problems: list[str]


def open_index(files: Sequence[str], parse: Callable[[object], Row], example: str) -> Index:
    """The columns of manifests; large ones from the cache, which is made if it is not there.

    Args:
        files: manifests, each a JSON list.
        parse: what a row holds; raises ValueError, whose message goes on after "Row 3 of x.json".
        example: a row as it should be, for messages.
    """
    try:
        sizes = [epath.Path(path).stat().length for path in files]
    except OSError:  # `read_rows` says which, and why
        sizes = []
    if sum(sizes) < CACHED_FROM:
        return _build_for_now(files, sum(sizes), parse, example)
    folder = cache_folder() / _key(files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            return _open(folder) or _build(folder, files, sum(sizes), parse, example)
    except OSError as error:
        print(f"the index of the manifests cannot be kept in {folder} "
              f"({error.strerror or error}); they are parsed at every start", file=sys.stderr)
        return _build_for_now(files, sum(sizes), parse, example)


def cache_folder() -> Path:
    """Where indices are kept: `albef_jax/manifests` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "albef_jax" / "manifests"


def _key(files: Sequence[str]) -> str:
    """Of paths, sizes, times, and the first and last bytes: quick however large they are."""
    digest = hashlib.blake2b(b"%d" % VERSION, digest_size=16)
    for path in files:
        length = epath.Path(path).stat().length
        time = os.stat(path).st_mtime_ns if os.path.exists(path) else epath.Path(path).stat().mtime
        digest.update(f" {os.path.abspath(path)} {length} {time} ".encode())
        with epath.Path(path).open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, length - (1 << 16)))
            digest.update(file.read())
    return digest.hexdigest()


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    """Held by one process at a time; says so when it has to wait."""
    lock = FileLock(f"{folder}.lock")
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        print("waiting for another process, which indexes the same manifests", file=sys.stderr)
        return lock.acquire()


def _open(folder: Path) -> Index | None:
    """The index in a folder; None if there is none, or a damaged one, which is removed."""
    if not folder.exists():
        return None
    try:
        header = json.loads((folder / "index.json").read_text())
        digests = {path: bytes.fromhex(digest) for path, digest in header["digests"].items()}
        damaged = [name for name, sum_ in header["sums"].items() if _sum(folder / name) != sum_]
    except (OSError, ValueError, KeyError) as error:
        damaged = [str(error)]
    if damaged:
        print(f"the index of the manifests in {folder} is damaged ({damaged[0]}); it is made anew",
              file=sys.stderr)
        shutil.rmtree(folder)
        return None
    return _map(folder, digests, [])


def _sum(path: Path) -> int:
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


def _map(folder: Path, digests: dict[str, bytes], problems: list[str]) -> Index:
    """The files of a folder as arrays, which stay when the folder is removed."""
    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)

    def texts(name: str) -> Texts:
        path = folder / f"{name}.bin"
        empty = not path.stat().st_size  # cannot be mapped
        data = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r").view(np.ndarray)
        return Texts(data, array(name))

    return Index(texts("names"), texts("captions"), array("rows"), array("image_ids"), digests,
                 problems)


def _build_for_now(files, size: int, parse, example: str) -> Index:
    with tempfile.TemporaryDirectory(prefix="albef-index-") as folder:
        digests, problems = _write(Path(folder), files, size, parse, example)
        return _map(Path(folder), digests, problems)


def _build(folder: Path, files, size: int, parse, example: str) -> Index:
    """Makes the index of a folder, complete or not at all; with problems only for now."""
    print(f"indexing {size / 1e9:.2f} GB of manifests, once; the index is {folder}",
          file=sys.stderr, flush=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished.{socket.gethostname()}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        digests, problems = _write(unfinished, files, size, parse, example)
        if problems:
            return _map(unfinished, digests, problems)
        header = {"digests": {path: digest.hex() for path, digest in digests.items()},
                  "sums": {path.name: _sum(path) for path in sorted(unfinished.iterdir())}}
        (unfinished / "index.json").write_text(json.dumps(header))
        unfinished.rename(folder)
        return _map(folder, digests, [])
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, files, size: int, parse, example: str):
    """Writes the columns; returns the digests of the manifests, and sentences about problems."""
    digests, problems, counts, hashes = {}, [], [], []
    with (
        _TextWriter(folder / "names") as names,
        _TextWriter(folder / "captions") as captions,
        tqdm(total=size, desc="index", unit="B", unit_scale=True,
             disable=None if size >= CACHED_FROM else True) as bar,
    ):
        for path in files:
            digest = hashlib.blake2b()

            def use(contents: bytes, digest=digest):
                digest.update(contents)
                bar.update(len(contents))

            wrong = []
            try:
                for rows in _parsed(read_rows(path, use, example), parse, path, wrong):
                    hashes.append(b"".join(map(_hash, names.extend([name for name, _ in rows]))))
                    captions.extend([text for _, texts in rows for text in texts])
                    counts.append(np.array([len(texts) for _, texts in rows], np.int64))
                digests[path] = digest.digest()
            except UserError as error:
                wrong.append(str(error))
            problems += wrong
    np.save(folder / "rows.npy", _starts(counts))
    np.save(folder / "image_ids.npy", number(np.frombuffer(b"".join(hashes), np.uint64)))
    return digests, problems


def _parsed(blocks: Iterator[list], parse, path: str, wrong: list[str]) -> Iterator[list[Row]]:
    """The rows that are right; appends a sentence about each of the first wrong ones."""
    number, count = 0, 0
    for block in blocks:
        rows = []
        for row in block:
            try:
                rows.append(parse(row))
            except ValueError as error:
                count += 1
                if count <= LISTED:
                    wrong.append(f"Row {number} (counted from 0) of {path} {error}.")
            number += 1
        yield rows
    if count > LISTED:
        wrong.append(f"{count - LISTED} more rows of {path} are wrong.")


class _TextWriter:
    """Writes `Texts` to PATH.bin and PATH.npy."""

    def __init__(self, path: Path):
        self._path, self._lengths = path, []

    def __enter__(self) -> _TextWriter:
        self._file = open(f"{self._path}.bin", "wb")
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        np.save(f"{self._path}.npy", _starts(self._lengths))

    def extend(self, texts: list[str]) -> list[bytes]:
        """Appends texts; returns them as they are written."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._file.write(b"".join(encoded))
        self._lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        return encoded


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    """Where each of consecutive pieces begins, and where the last one ends: int64 [n + 1]."""
    return np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)


def _hash(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=16).digest()


def number(hashes: np.ndarray) -> np.ndarray:
    """Consecutive numbers int32 [n] by first appearance, of hashes uint64 [2 n]."""
    pairs = hashes.reshape(-1, 2)
    order = np.lexsort(pairs.T)  # stable: the first of equal ones stays first
    ordered = pairs[order]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rank = np.argsort(np.argsort(order[is_new]))
    numbers = np.empty(len(pairs), np.int32)
    numbers[order] = rank[np.cumsum(is_new) - 1]
    return numbers
