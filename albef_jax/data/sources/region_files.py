"""Files of regions that people have, each with random access by the name of an image.

| file | what it is | where |
|---|---|---|
| `.tsv` | of bottom-up attention, LXMERT, M5Product, or VinVL (with `.lineidx`) | `RegionsTsv` |
| a folder | a file NAME.npz for each image: ours, or UNITER's | `FeatureFolder` |
| LMDB | UNITER's (compressed) or ViLBERT's | `region_stores` |
| `.hdf5`, `.h5` | a group for each image, or rows with an index beside the file | `region_stores` |

Every reader has `names()`, `name in reader` and `read(name)`, which gives a `regions.Regions` or
raises OSError where it is damaged. Nothing is unpickled that could run code.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath
from tqdm import tqdm

from albef_jax.data.sources.numbering import hashed
from albef_jax.data.sources.regions import Regions, of_arrays
from albef_jax.errors import UserError
from albef_jax.files import cache_folder, completed, is_remote, local_copy, locked, read_bytes

# Columns of a bottom-up-attention TSV; M5Product's has a title behind them, others probabilities.
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
          "num_boxes", "boxes", "features")
VINVL = ("image_id", "num_boxes", "features")  # each row of features ends with its box
LAYOUTS = {len(columns): columns for columns in (COLUMNS, (*COLUMNS, "cls_prob"), LXMERT, VINVL)}
IDS = ("image_id", "img_id")
ARRAYS = {"boxes": "<f4", "features": "<f4", "cls_prob": "<f4", "objects_id": "<i8",
          "objects_conf": "<f4"}  # column -> type of what is in it, as base64
VINVL_BOX = 6  # x1, y1, x2, y2, width, height, as shares
LINE_INDEX = ".lineidx"  # beside a TSV: the place of each line in bytes
CACHED_FROM = 1 << 28  # bytes of a TSV whose index is kept
VERSION = 2  # of such an index
BLOCK = 4096  # bytes that hold the name of an image, where it comes first
ROUNDING = 1e-2  # of shares and of probabilities
# numpy reads the head of an array with Python's parser, which in Python 3.11 is not safe in threads
# (python/cpython#106905): once in many thousand files it raises a SystemError.
PARSING = threading.Lock()


def open_regions(path: str):
    """The reader of a file or folder, see above; raises UserError."""
    here, name = epath.Path(path), str(path)
    is_folder = here.is_dir() if is_remote(path) else os.path.isdir(path)
    if name.endswith((".hdf5", ".h5")):
        from albef_jax.data.sources.region_stores import RegionsHdf5  # an extra

        return RegionsHdf5(path)
    if name.endswith((".mdb", ".lmdb")) or (is_folder and (here / "data.mdb").exists()):
        from albef_jax.data.sources.region_stores import RegionsLmdb  # an extra

        return RegionsLmdb(path)
    return FeatureFolder(path, ".npz") if is_folder or not name.endswith(".tsv") else (
        RegionsTsv(path))


def open_all(open_one: Callable, paths: Sequence[str] | str) -> tuple[list, list[str]]:
    """What is at one or several paths, each opened by `open_one`, and what is wrong with others."""
    opened, wrong = [], []
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            opened.append(open_one(path))
        except UserError as error:
            wrong.append(str(error))
    return opened, wrong


class RegionsTsv:
    """Random access to the lines of a TSV, with a header or of one of the `LAYOUTS`.

    The file is read through once for the place of each line; of a large file these are kept in the
    user's cache, and a line index beside it spares the reading. One on an object store is copied to
    this machine first.

    Raises:
        UserError: the file cannot be read, or is no such TSV.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            local = local_copy(path)
            self._file = open(local, "rb", buffering=0)
            self._columns, self._certain = self._layout(local)
            self._keys, self._starts, self._lengths = _index(
                local, next(map(self._columns.index, filter(self._columns.__contains__, IDS))),
                self._certain, _line_index(path))
        except OSError as error:
            raise UserError(f"The region file {path} cannot be read ({error.strerror or error}); "
                            "check data.source.regions.") from None

    def _layout(self, local: str) -> tuple[tuple[str, ...], bool]:
        """The names of the columns, and whether a header says them."""
        with open(local, "rb") as file:
            first = file.readline().rstrip(b"\r\n").split(b"\t")
        names = tuple(name.decode("utf-8", "replace") for name in first)
        if {*VINVL[1:]} <= {*names} and {*IDS} & {*names}:
            return names, True
        if first != [b""] and len(first) not in LAYOUTS:
            raise UserError(f"The region file {self.path} is no TSV with the columns "
                            f"{', '.join(COLUMNS)}, nor one of LXMERT or VinVL; give one, or a "
                            "folder of .npz files.")
        return LAYOUTS.get(len(first), COLUMNS), False

    def names(self) -> list[str]:
        """The names of all images, in order of the file."""
        column = next(map(self._columns.index, filter(self._columns.__contains__, IDS)))
        return [self._line(line).split(b"\t", column + 1)[column].decode()
                for line in range(len(self))]

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def read(self, name: str) -> Regions:
        """The regions of an image.

        Raises:
            OSError: the file ends within them, or they are damaged.
        """
        line = self._find(name)
        if line is None:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        contents = self._line(line)
        if len(contents) != self._lengths[line]:
            raise OSError(f"{self.path} ends inside {name}")
        return parse_line(contents, self._columns, self._certain)

    def _find(self, name: str) -> int | None:
        key = hashed([name])[0]
        row = int(np.searchsorted(self._keys["key"], key))
        if row < len(self._keys) and self._keys["key"][row] == key:
            return int(self._keys["line"][row])
        return None

    def _line(self, line: int) -> bytes:
        return os.pread(self._file.fileno(), int(self._lengths[line]), int(self._starts[line]))


def parse_line(line: bytes, columns, certain: bool) -> Regions:
    """The regions of a line of a TSV; raises OSError where it is damaged.

    Args:
        columns: their names. certain: these are from a header; a last column `cls_prob` may else be
            anything.
    """
    values = dict(zip(columns, line.rstrip(b"\r\n").split(b"\t")))
    try:
        count, arrays = int(values["num_boxes"]), {}
        for name in ARRAYS.keys() & values.keys():
            try:
                array = np.frombuffer(base64.b64decode(values[name], validate=True), ARRAYS[name])
                array = array.reshape((count, 4) if name == "boxes" else (count, -1))
                if name == "cls_prob" and np.any(abs(array.sum(axis=1) - 1) > ROUNDING):
                    raise ValueError("class probabilities that do not add up to 1")
            except (ValueError, binascii.Error):
                if certain or name != "cls_prob":
                    raise
                continue  # a title
            arrays[name] = array[:, 0] if name.startswith("objects") else array
        if "boxes" not in values:
            arrays = _with_box(arrays)
        for name in values.keys() - ARRAYS.keys():
            if name.endswith(("_w", "_h")):
                arrays[name] = float(values[name])
        return of_arrays(arrays)
    except (KeyError, ValueError, binascii.Error) as error:
        raise OSError(f"a damaged line ({error})") from None


def _with_box(arrays):
    """Features of VinVL without their last columns, which are the boxes."""
    features, shares = np.split(arrays["features"], [-VINVL_BOX], axis=1)
    sides = np.stack([shares[:, 2] - shares[:, 0], shares[:, 3] - shares[:, 1]], axis=1)
    if not np.all(abs(sides - shares[:, 4:]) <= ROUNDING):
        raise ValueError("rows that do not end with x1, y1, x2, y2, width, height")
    return arrays | {"features": features, "norm_bb": shares}


def _line_index(path: str) -> str | None:
    """The local path of the line index beside a TSV, or None."""
    beside = os.path.splitext(path)[0] + LINE_INDEX
    return local_copy(beside) if epath.Path(beside).exists() else None


def _index(path: str, column: int, header: bool, line_index: str | None):
    """Sorted keys of the names with their lines, and start and length of each line.

    Args:
        path: local. column: where the names are. header: the first line is none of data.
        line_index: a local path, or None.
    """
    size = os.path.getsize(path)
    if line_index and column == 0:
        return _from_line_index(path, size, line_index)
    if size < CACHED_FROM:
        return _read_index(path, size, column, header)
    stat = os.stat(path)
    key = hashlib.blake2b(f"{VERSION} {os.path.abspath(path)} {size} {stat.st_mtime_ns}".encode(),
                          digest_size=16).hexdigest()
    kept = cache_folder("regions") / f"{key}.npz"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with locked(kept, "indexing the same region file"):
        if kept.exists():
            try:
                with np.load(kept) as file:
                    return file["keys"], file["starts"], file["lengths"]
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                print(f"the index {kept} is damaged; it is made anew", file=sys.stderr)
        keys, starts, lengths = _read_index(path, size, column, header)
        with completed(kept) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, keys=keys, starts=starts, lengths=lengths)
        return keys, starts, lengths


def _read_index(path: str, size: int, column: int, header: bool):
    starts, names = [], []
    with open(path, "rb") as file, tqdm(
            total=size, desc="index of regions", unit="B", unit_scale=True,
            disable=None if size >= CACHED_FROM else True) as bar:
        place = len(file.readline()) if header else 0
        while line := file.readline():
            if line.strip():
                starts.append((place, len(line)))
                head = line[:BLOCK] if column == 0 else line
                names.append(head.split(b"\t", column + 1)[column:column + 1])
            place += len(line)
            bar.update(len(line))
    places = np.array(starts, np.int64).reshape(-1, 2)
    return _sorted(b"".join(name).strip() for name in names), places[:, 0], places[:, 1]


def _from_line_index(path: str, size: int, line_index: str):
    """As `_read_index`, of the names in the first column only.

    Raises:
        UserError: it is the line index of another file.
    """
    try:
        starts = np.loadtxt(line_index, np.int64, ndmin=1)
        ascending = not len(starts) or (starts[0] >= 0 and np.all(np.diff(starts) > 0)
                                        and starts[-1] < size)
        with open(path, "rb") as file:
            heads = [os.pread(file.fileno(), BLOCK, max(start - 1, 0))
                     for start in starts.tolist()] if ascending else []
    except ValueError:
        ascending, heads, starts = False, [], np.zeros(0, np.int64)
    fits = all(start == 0 or head[:1] == b"\n" for start, head in zip(starts.tolist(), heads))
    if not ascending or not fits:
        raise UserError(f"The line index {line_index} is not that of {path}; delete it, and the "
                        "file is read through once.")
    names = (head[start > 0:].split(b"\t", 1)[0] for start, head in zip(starts.tolist(), heads))
    return _sorted(names), starts, np.diff(np.append(starts, size))


def _sorted(names) -> np.ndarray:
    """Sorted hashes of names with their numbers."""
    names = [name.decode("utf-8", "replace") for name in names]
    keys = np.zeros(len(names), [("key", np.uint64), ("line", np.int64)])
    keys["key"], keys["line"] = hashed(names), np.arange(len(names))
    return np.sort(keys, order="key")


class FeatureFolder:
    """A folder with a file NAME.npy, or NAME.npz for regions, for each example that has some.

    Args:
        path: of the folder; names may have folders in them. ending: of the files.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, path: str, ending: str):
        self.path, self._ending = path, ending
        folder = epath.Path(path)
        if not folder.is_dir():
            raise UserError(f"The folder of features {path} does not exist; give one with files "
                            f"NAME{ending}, such as `albef features` writes.")
        self._names = {name.removesuffix(ending) for name in files_under(folder, ending)}

    def names(self) -> list[str]:
        """The names of all examples, sorted."""
        return sorted(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str):
        """The features of an example; raises OSError where they are damaged."""
        return parse_features(read_bytes(epath.Path(self.path) / f"{name}{self._ending}"))


def files_under(folder: epath.Path, ending: str, within: str = "") -> Iterator[str]:
    """The files with an ending in a folder and in its folders, as paths inside it."""
    for entry in folder.iterdir():
        if entry.name.endswith(ending):
            yield within + entry.name
        elif entry.is_dir():
            yield from files_under(entry, ending, f"{within}{entry.name}/")


def parse_features(contents: bytes) -> np.ndarray | Regions:
    """What a .npy or .npz file holds: an array [n, width], or regions as `regions.of_arrays` knows.

    Raises:
        OSError: it is damaged, holds anything else, or numbers that are not finite.
    """
    try:
        with PARSING:
            loaded = np.load(io.BytesIO(contents), allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                with loaded:
                    return of_arrays(loaded)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"no file of features ({error})") from None
    if loaded.ndim != 2 or loaded.dtype.kind not in "fiu":
        raise OSError(f"features {loaded.dtype} {list(loaded.shape)}, not numbers [n, width]")
    if not np.all(np.isfinite(loaded)):
        raise OSError("features that are not finite")
    return loaded
