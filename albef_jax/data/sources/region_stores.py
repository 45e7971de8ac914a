"""Regions in LMDB (UNITER, ViLBERT) and HDF5, see `region_files`; both libraries are extras."""

from __future__ import annotations

import base64
import binascii
import json
import os

import numpy as np
from etils import epath

from albef_jax.data.sources.pickles import plain_pickle
from albef_jax.data.sources.region_files import parse_features
from albef_jax.data.sources.regions import SIZES, Regions, of_arrays
from albef_jax.errors import MISSING, UserError
from albef_jax.files import is_remote, local_copy, read_bytes

ZIP = b"PK"  # how an .npz begins
PICKLE = b"\x80"
ENDING = ".npz"  # of the keys in UNITER's files
NOT_NAMES = {"__keys__", "keys", "__len__"}  # keys of an LMDB that are no images
INDEX = "_imgid2idx"  # behind the name of an HDF5 file: that of its index, .json or .pkl


class RegionsLmdb:
    """A folder with data.mdb, or the file: UNITER's compressed one, or ViLBERT's.

    A value is the bytes of an .npz, or a pickled dict with sizes, counts, and arrays in base64,
    which is read without the power to run anything.

    Raises:
        UserError: it cannot be opened, or lmdb is not installed.
    """

    def __init__(self, path: str):
        try:
            import lmdb  # an extra
        except ImportError:
            raise UserError(MISSING.format(f"The LMDB {path}", "lmdb", "regions")) from None
        if is_remote(path):
            raise UserError(f"The LMDB {path} must be on this machine; copy it here.")
        try:
            self._environment = lmdb.open(os.fspath(path), subdir=os.path.isdir(path),
                                          readonly=True, lock=False, readahead=False)
            with self._environment.begin() as transaction:
                keys = [bytes(key).decode() for key in transaction.cursor().iternext(values=False)]
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise UserError(f"The LMDB {path} cannot be read ({error}); check "
                            "data.source.regions.") from None
        self.path = path
        self._keys = {key.removesuffix(ENDING): key for key in keys if key not in NOT_NAMES}

    def names(self) -> list[str]:
        """The names of all images, sorted."""
        return sorted(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def read(self, name: str) -> Regions:
        """The regions of an image; raises OSError where they are damaged."""
        if name not in self:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        with self._environment.begin() as transaction:
            value = bytes(transaction.get(self._keys[name].encode()))
        if value.startswith(ZIP):
            return parse_features(value)
        if value.startswith(PICKLE):
            return _of_pickle(value)
        raise OSError("neither an .npz nor a pickled dict; of UNITER's files take the compressed "
                      "ones")


def _of_pickle(value: bytes) -> Regions:
    try:
        row = plain_pickle(value)
        count, arrays = int(row["num_boxes"]), {}
        for name in {"boxes", "features", "cls_prob"} & row.keys():
            array = np.frombuffer(base64.b64decode(row[name], validate=True), "<f4")
            arrays[name] = array.reshape((count, 4) if name == "boxes" else (count, -1))
        sizes = {name: float(row[name]) for pair in SIZES for name in pair if name in row}
        return of_arrays(arrays | sizes)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise OSError(f"a damaged pickle ({error})") from None


class RegionsHdf5:
    """A group for each image, or arrays of all images and an index from image ids to rows.

    A group has `features`, `boxes` and maybe `cls_prob`, and the size as attributes `image_w` and
    `image_h`. The arrays are `image_features` and `spatial_features`, as many for each image
    (`[n, k, ...]`), or flat with the rows of each in `pos_boxes` `[n, 2]`; the index is beside the
    file, NAME_imgid2idx.json or .pkl.

    Raises:
        UserError: it cannot be read, lacks its index, or h5py is not installed.
    """

    def __init__(self, path: str):
        try:
            import h5py  # an extra
        except ImportError:
            raise UserError(MISSING.format(f"The HDF5 file {path}", "h5py", "regions")) from None
        try:
            self._file = h5py.File(local_copy(path), "r")
        except OSError as error:
            raise UserError(f"The HDF5 file {path} cannot be read ({error}); check "
                            "data.source.regions.") from None
        self.path, self._rows = path, None
        if "image_features" in self._file:
            self._rows = _row_index(os.path.splitext(path)[0] + INDEX, path)

    def names(self) -> list[str]:
        """The names of all images."""
        return list(self._file) if self._rows is None else list(self._rows)

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: str) -> bool:
        return name in (self._file if self._rows is None else self._rows)

    def read(self, name: str) -> Regions:
        """The regions of an image; raises OSError where they are damaged."""
        if name not in self:
            raise FileNotFoundError(f"{name} is not in {self.path}")
        try:
            if self._rows is None:
                group = self._file[name]
                return of_arrays({**group.attrs, **{key: group[key][()] for key in group}})
            place = self._rows[name]
            if "pos_boxes" in self._file:
                place = slice(*map(int, self._file["pos_boxes"][place]))
            return of_arrays({"features": self._file["image_features"][place],
                              "spatial_features": self._file["spatial_features"][place]})
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise OSError(f"damaged regions ({error})") from None


def _row_index(beside: str, path: str) -> dict[str, int]:
    """Name of an image -> its row, from a file beside an HDF5 file."""
    for ending, parse in ((".json", json.loads), (".pkl", plain_pickle)):
        if not epath.Path(beside + ending).exists():
            continue
        try:
            return {str(name): int(row)
                    for name, row in parse(read_bytes(beside + ending)).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{beside}{ending} is no index from image ids to rows ({error}); "
                            "take that of the same data.") from None
    raise UserError(f"The HDF5 file {path} has rows without names; put its index beside it, "
                    f"{os.path.basename(beside)}.json or .pkl.")
