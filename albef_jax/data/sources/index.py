"""Names and captions of millions of rows as columns in files, mapped into memory.

Large manifests, and tars, are read once; the columns are kept in the user's cache. Folder of an
index:

    rows.arrow        name (a text), captions (a list of texts) and whatever else of each row, in
                      Arrow's IPC format
    image_ids.npy     int32 [n]; equal for equal names, by first appearance
    index.json        digests of the files, and a checksum of both files above
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

from albef_jax.data.sources.numbering import hashed, number
from albef_jax.files import cache_folder, completed, locked

CACHED_FROM = 1 << 26  # bytes; smaller manifests are parsed at every start
BATCH = 1 << 14  # rows that are written at once
VERSION = 2  # of the files; another one is another cache
SCHEMA = pa.schema({"name": pa.string(), "captions": pa.list_(pa.string())})

Row = tuple[str, list[str]]
"""Image name and captions."""


class Index(NamedTuple):
    """The columns of n rows.

    table: of the schema; `names[i].as_py()` is a text, `captions[i].as_py()` a list of texts.
    image_ids: int32 [n].
    digests: of the contents, of each file that could be read, by path.
    problems: a sentence about each file and row that is wrong.
    """

    table: pa.Table
    image_ids: np.ndarray
    digests: dict[str, bytes]
    problems: list[str]

    @property
    def names(self) -> pa.ChunkedArray:
        return self.table["name"]

    @property
    def captions(self) -> pa.ChunkedArray:
        return self.table["captions"]


def open_index(files: Sequence[str], reader: Callable, told: str,
               schema: pa.Schema = SCHEMA) -> Index:
    """The columns of files; of large ones from the cache, which is made if it is not there.

    Args:
        files: local, or any paths that epath knows.
        reader: called with `progress=`, as of `json_rows.Manifests`, gives what yields a tuple for
            each row and has its attributes.
        told: what the rows depend on beside the files.
        schema: of the columns; the first ones are those of `SCHEMA`.
    """
    try:
        size = sum(epath.Path(path).stat().length for path in files)
    except OSError:  # the reader says which, and why
        size = 0
    write = functools.partial(_write, reader, schema, size)
    if size < CACHED_FROM:
        return _build_for_now(write)
    folder = cache_folder("manifests") / _key(files, told)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, "indexing the same files"):
            return _open(folder) or _build(folder, size, write)
    except OSError as error:
        print(f"the index of {files[0]} cannot be kept in {folder} "
              f"({error.strerror or error}); the files are read at every start", file=sys.stderr)
        return _build_for_now(write)


def _key(files: Sequence[str], told: str) -> str:
    """Of paths, sizes, times, and the first and last bytes: quick however large they are."""
    digest = hashlib.blake2b(f"{VERSION} {told}".encode(), digest_size=16)
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
        print(f"the index in {folder} is damaged ({damaged[0]}); it is made anew",
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
    return Index(table, image_ids, digests, problems)


def _build_for_now(write: Callable[[Path], Index]) -> Index:
    with tempfile.TemporaryDirectory(prefix="albef-index-") as folder:
        return write(Path(folder))


def _build(folder: Path, size: int, write: Callable[[Path], Index]) -> Index:
    """Makes the index of a folder, complete or not at all; with problems only for now."""
    print(f"indexing {size / 1e9:.2f} GB, once; the index is {folder}",
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


def _write(reader: Callable, schema: pa.Schema, size: int, folder: Path) -> Index:
    """Writes the columns."""
    hashes = [hashed(())]
    with (
        pa.ipc.new_file(str(folder / "rows.arrow"), schema) as table,
        tqdm(total=size, desc="index", unit="B", unit_scale=True,
             disable=None if size >= CACHED_FROM else True) as bar,
    ):
        files = reader(progress=bar.update)
        rows = iter(files)
        while batch := list(itertools.islice(rows, BATCH)):
            columns = list(zip(*batch))
            hashes.append(hashed(columns[0]))
            table.write(pa.record_batch(columns, schema))
    np.save(folder / "image_ids.npy", number(np.concatenate(hashes)))
    return _map(folder, files.digests, files.problems)
