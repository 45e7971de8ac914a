"""Regions of images in files: a detector's TSV, or a folder with a file for each image."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import sys
import zipfile
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from albef_jax.data.sources.numbering import hashed
from albef_jax.errors import UserError
from albef_jax.files import cache_folder, completed, is_remote, local_copy, locked, read_bytes

# Columns of a bottom-up-attention TSV, and of M5Product's, which have a title behind them.
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
CACHED_FROM = 1 << 28  # bytes of a TSV whose index is kept
VERSION = 1  # of such an index
BLOCK = 4096  # bytes that hold the name of an image


class Regions(NamedTuple):
    """What a detector, or a grid, found in an image.

    features: float [n, d]. boxes: float [n, 4], x1, y1, x2, y2 in pixels. size: width and height of
    the image. classes: int [n], the likeliest object class of each, without background; None where
    it is not known. confidences: float [n], how sure the detector is of them; None likewise.
    """

    features: np.ndarray
    boxes: np.ndarray
    size: tuple[float, float]
    classes: np.ndarray | None = None
    confidences: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> Regions:
        """Some of the regions, by their numbers."""
        taken = {name: getattr(self, name)[chosen] for name in self._fields
                 if name != "size" and getattr(self, name) is not None}
        return self._replace(**taken)

    def clipped(self) -> Regions:
        """The boxes cut off at the borders of the image; without those that have no area left."""
        boxes, valid = clipped(self.boxes, self.size)
        return self._replace(boxes=boxes).rows(np.flatnonzero(valid))

    def best(self, count: int) -> Regions:
        """The `count` most confident regions in their order, or the first ones."""
        if self.confidences is None or len(self.features) <= count:
            return self.rows(np.arange(min(count, len(self.features))))
        order = np.argsort(-self.confidences, kind="stable")
        return self.rows(np.sort(order[:count]))


def clipped(boxes: np.ndarray, size) -> tuple[np.ndarray, np.ndarray]:
    """Boxes inside the image, float32, and whether they have an area there, bool.

    Args:
        boxes: [..., 4], x1, y1, x2, y2 in pixels. size: width and height, 2 or [..., 2].
    """
    borders = np.concatenate([np.asarray(size, np.float32)] * 2, axis=-1)
    inside = np.clip(np.asarray(boxes, np.float32), 0, borders)
    return inside, np.all(inside[..., 2:] > inside[..., :2], axis=-1)


def locations(boxes: np.ndarray, size) -> np.ndarray:
    """x1 / w, y1 / h, x2 / w, y2 / h, and the share of the image's area: float32 [..., 5].

    Args:
        boxes: [..., 4], x1, y1, x2, y2 in pixels. size: width and height, 2 or [..., 2].
    """
    width, height = np.moveaxis(np.asarray(size, np.float32), -1, 0)
    x1, y1, x2, y2 = np.moveaxis(np.asarray(boxes, np.float32), -1, 0)
    return np.stack([x1 / width, y1 / height, x2 / width, y2 / height,
                     (x2 - x1) * (y2 - y1) / (width * height)], axis=-1)


def likeliest(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object classes int32 [n] and their probabilities float32 [n].

    Args:
        probabilities: [n, 1 + k], of background in column 0, which is never a region's class.
    """
    objects = np.asarray(probabilities, np.float32)[:, 1:]
    return np.argmax(objects, axis=1).astype(np.int32), np.max(objects, axis=1)


class RegionsTsv:
    """Random access to the lines of a TSV without a header, `COLUMNS` and maybe more.

    The file is read through once for the place of each line; of a large file these are kept in the
    user's cache. One on an object store is copied to this machine first.

    Raises:
        UserError: the file cannot be read, or is no such TSV.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            local = local_copy(path)
            self._keys, self._starts, self._lengths = _index(local)
            self._file = open(local, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"The region file {path} cannot be read ({error.strerror or error}); "
                            "check data.source.regions.") from None
        if len(self._starts) and self._columns(0).count(b"\t") < len(COLUMNS) - 1:
            raise UserError(f"The region file {path} is no TSV with the columns "
                            f"{', '.join(COLUMNS)}; give one, or a folder of .npz files.")

    def names(self) -> list[str]:
        """The names of all images, in order of the file."""
        return [self._columns(line).split(b"\t", 1)[0].decode() for line in range(len(self))]

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
        length = int(self._lengths[line])
        contents = os.pread(self._file.fileno(), length, int(self._starts[line]))
        if len(contents) != length:
            raise OSError(f"{self.path} ends inside {name}")
        return parse_line(contents)

    def _find(self, name: str) -> int | None:
        key = hashed([name])[0]
        row = int(np.searchsorted(self._keys["key"], key))
        if row < len(self._keys) and self._keys["key"][row] == key:
            return int(self._keys["line"][row])
        return None

    def _columns(self, line: int) -> bytes:
        return os.pread(self._file.fileno(), int(self._lengths[line]), int(self._starts[line]))


def parse_line(line: bytes) -> Regions:
    """The regions of a line of a TSV; raises OSError where it is damaged."""
    values = dict(zip(COLUMNS, line.rstrip(b"\r\n").split(b"\t")))
    try:
        count, size = int(values["num_boxes"]), (float(values["image_w"]), float(values["image_h"]))
        boxes, features = (np.frombuffer(base64.b64decode(values[name], validate=True), "<f4")
                           for name in ("boxes", "features"))
        return _checked(Regions(features.reshape(count, -1), boxes.reshape(count, 4), size))
    except (KeyError, ValueError, binascii.Error) as error:
        raise OSError(f"a damaged line ({error})") from None


def _index(path: str):
    """Sorted keys of the names with their lines, and start and length of each line."""
    size = os.path.getsize(path)
    if size < CACHED_FROM:
        return _read_index(path, size)
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
        keys, starts, lengths = _read_index(path, size)
        with completed(kept) as unfinished, open(unfinished, "wb") as file:
            np.savez(file, keys=keys, starts=starts, lengths=lengths)
        return keys, starts, lengths


def _read_index(path: str, size: int):
    starts, names = [], []
    with open(path, "rb") as file, tqdm(
            total=size, desc="index of regions", unit="B", unit_scale=True,
            disable=None if size >= CACHED_FROM else True) as bar:
        place = 0
        while line := file.readline():
            if line.strip():
                starts.append((place, len(line)))
                names.append(line[:BLOCK].split(b"\t", 1)[0].decode("utf-8", "replace"))
            place += len(line)
            bar.update(len(line))
    keys = np.zeros(len(names), [("key", np.uint64), ("line", np.int64)])
    keys["key"], keys["line"] = hashed(names), np.arange(len(names))
    places = np.array(starts, np.int64).reshape(-1, 2)
    return np.sort(keys, order="key"), places[:, 0], places[:, 1]


class FeatureFolder:
    """A folder with a file NAME.npy, or NAME.npz for regions, for each example that has some.

    Args:
        path: of the folder. ending: of the files.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, path: str, ending: str):
        self.path, self._ending = path, ending
        folder = epath.Path(path)
        if not folder.is_dir():
            raise UserError(f"The folder of features {path} does not exist; give one with files "
                            f"NAME{ending}, such as `albef features` writes.")
        self._names = {file.name.removesuffix(ending) for file in folder.iterdir()
                       if file.name.endswith(ending)}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def read(self, name: str):
        """The features of an example; raises OSError where they are damaged."""
        return parse_features(read_bytes(epath.Path(self.path) / f"{name}{self._ending}"))


def parse_features(contents: bytes) -> np.ndarray | Regions:
    """What a .npy or .npz file holds: an array, or features, boxes and size of regions.

    Raises:
        OSError: it is damaged, holds anything else, or numbers that are not finite.
    """
    try:
        loaded = np.load(io.BytesIO(contents), allow_pickle=False)
        value = loaded if isinstance(loaded, np.ndarray) else Regions(
            loaded["features"], loaded["boxes"], tuple(loaded["size"].tolist()))
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise OSError(f"no file of features ({error})") from None
    return _checked(value)


def _checked(value: np.ndarray | Regions) -> np.ndarray | Regions:
    """The features; raises OSError if they are no numbers [n, width]."""
    array = value if isinstance(value, np.ndarray) else value.features
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise OSError(f"features {array.dtype} {list(array.shape)}, not numbers [n, width]")
    if not np.all(np.isfinite(array)):
        raise OSError("features that are not finite")
    return value


def open_regions(path: str) -> RegionsTsv | FeatureFolder:
    """A TSV, or a folder of .npz files; raises UserError."""
    is_folder = epath.Path(path).is_dir() if is_remote(path) else os.path.isdir(path)
    return FeatureFolder(path, ".npz") if is_folder or not path.endswith(".tsv") else (
        RegionsTsv(path))
