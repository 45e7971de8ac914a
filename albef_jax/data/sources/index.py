"""Names and captions of millions of manifest rows as columns in files, mapped into memory.

Large manifests are parsed once; the columns are kept in the user's cache. Folder of an index:

    rows.arrow        name (a text) and captions (a list of texts) of each row, Arrow's IPC format
    image_ids.npy     int32 [n]; equal for equal names, by first appearance
    index.json        digests of the manifests, and a checksum of both files above
"""

import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from etils import epath
from tqdm import tqdm

from albef_jax.data.sources.json_rows import Manifests
from albef_jax.data.sources.numbering import hashed, number
from albef_jax.files import cache_folder, completed, locked

CACHED_FROM = 1 << 26  # bytes; smaller manifests are parsed at every start
BATCH = 1 << 14  # rows that are written at once
VERSION = 2  # of the files; another one is another cache
SCHEMA = pa.schema({"name": pa.string(), "captions": pa.list_(pa.string())})

Row = tuple[str, list[str]]
"""Image name and captions."""


class Index(NamedTuple):
    """The columns of manifests.

    names, captions: of n rows; `names[i].as_py()` is a text, `captions[i].as_py()` a list of texts.
    image_ids: int32 [n].
    digests: of the contents, of each manifest that could be read, by path.
    problems: a sentence about each manifest and row that is wrong.
    """

    names: pa.ChunkedArray
    captions: pa.ChunkedArray
    image_ids: np.ndarray
    digests: dict[str, bytes]
    problems: list[str]


def open_index(files: Sequence[str], parse: Callable[[object], Row], example: str,
               keys: Sequence[str] = ()) -> Index:
    """The columns of `Manifests`; large ones from the cache, which is made if it is not there.

    `keys`: see `json_rows.read_rows`.
    """
    try:
        size = sum(epath.Path(path).stat().length for path in files)
    except OSError:  # `read_rows` says which, and why
        size = 0
    write = functools.partial(_write, files, parse, example, keys, size)
    if size < CACHED_FROM:
        return _build_for_now(write)
    folder = cache_folder("manifests") / _key(files, keys)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, "indexing the same manifests"):
            return _open(folder) or _build(folder, size, write)
    except OSError as error:
        print(f"the index of the manifests cannot be kept in {folder} "
              f"({error.strerror or error}); they are parsed at every start", file=sys.stderr)
        return _build_for_now(write)


def _key(files: Sequence[str], keys: Sequence[str]) -> str:
    """Of paths, sizes, times, and the first and last bytes: quick however large they are."""
    digest = hashlib.blake2b(f"{VERSION} {keys}".encode(), digest_size=16)
    for path in files:
        length = epath.Path(path).stat().length
        time = os.stat(path).st_mtime_ns if os.path.exists(path) else epath.Path(path).stat().mtime
        digest.update(f" {os.path.abspath(path)} {length} {time} ".encode())
        with epath.Path(path).open("rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, length - (1 << 16)))
            digest.update(file.read())
    return digest.hexdigest()


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
    return zlib.crc32(np.memmap(path, np.uint8, "r"))


def _map(folder: Path, digests: dict[str, bytes], problems: list[str]) -> Index:
    """The files of a folder, which stay mapped when it is removed."""
    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
    image_ids = np.load(folder / "image_ids.npy", mmap_mode="r").view(np.ndarray)
    return Index(table["name"], table["captions"], image_ids, digests, problems)


def _build_for_now(write: Callable[[Path], Index]) -> Index:
    with tempfile.TemporaryDirectory(prefix="albef-index-") as folder:
        return write(Path(folder))


def _build(folder: Path, size: int, write: Callable[[Path], Index]) -> Index:
    """Makes the index of a folder, complete or not at all; with problems only for now."""
    print(f"indexing {size / 1e9:.2f} GB of manifests, once; the index is {folder}",
          file=sys.stderr, flush=True)
    with completed(folder) as unfinished:
        unfinished = Path(unfinished)
        unfinished.mkdir()
        index = write(unfinished)
        if not index.problems:
            header = {"digests": {path: digest.hex() for path, digest in index.digests.items()},
                      "sums": {path.name: _sum(path) for path in unfinished.iterdir()}}
            (unfinished / "index.json").write_text(json.dumps(header))
    if index.problems:
        shutil.rmtree(folder)
    return index


def _write(files, parse, example: str, keys, size: int, folder: Path) -> Index:
    """Writes the columns."""
    hashes = [hashed(())]
    with (
        pa.ipc.new_file(str(folder / "rows.arrow"), SCHEMA) as table,
        tqdm(total=size, desc="index", unit="B", unit_scale=True,
             disable=None if size >= CACHED_FROM else True) as bar,
    ):
        manifests = Manifests(files, parse, example, bar.update, keys)
        rows = iter(manifests)
        while batch := list(itertools.islice(rows, BATCH)):
            columns = list(zip(*batch))
            hashes.append(hashed(columns[0]))
            table.write(pa.record_batch(columns, SCHEMA))
    np.save(folder / "image_ids.npy", number(np.concatenate(hashes)))
    return _map(folder, manifests.digests, manifests.problems)
