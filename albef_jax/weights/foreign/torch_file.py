"""Tensors in files, without torch and without running what a pickle asks for.

A `.pth` in the zip format of torch >= 1.6 is a small pickle that names its tensors and one plain,
uncompressed buffer per storage. The pickle is read by an unpickler that knows tensors, storages
and ordered dicts and refuses everything else; the buffers are mapped into memory, so that only
what is looked at is read. Safetensors files are mapped likewise.
"""

from collections import OrderedDict
import json
import mmap
import os
import pickle
import struct
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from albef_jax.errors import UserError, first_line
from albef_jax.files import local_copy

STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
    "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}
WRAPPERS = ("model", "state_dict")  # keys under which training code keeps the state dict
# First bytes of torch's format before 1.6: a pickled magic number, protocol 2.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
CONVERT = ("on a machine with torch, run torch.save(torch.load(FILE, map_location='cpu', "
           "weights_only=True), NEW_FILE) and give the new file")


def read_tensors(path):
    """The tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file; the content tells which.

    `{"model": ...}` and `{"state_dict": ...}` are unwrapped.

    Args:
      path: a local file.

    Returns:
      name -> read-only numpy array, mapped from the file: nothing is read until it is looked at.
      bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      UserError: not such a file, cut short, damaged, or a pickle that holds anything else than
        tensors and plain values.
    """
    path = local_copy(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the file with the weights.")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"The weights {path} cannot be read ({error.strerror}); check the "
                        "path.") from None
    if start.startswith(b"PK\x03\x04"):
        return _read_torch_zip(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise UserError(_what_else(path, start))


def let_go(tensors):
    """Gives back the memory of mapped tensors; what is looked at again is read again."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
        for array in tensors.values():
            if isinstance(array.base, mmap.mmap):
                array.base.madvise(mmap.MADV_DONTNEED)


def _what_else(path, start):
    """A sentence about a file in neither format."""
    if not start:
        return f"{path} is empty; download it again."
    if start.startswith(LEGACY) or start[257:262] == b"ustar":
        return f"{path} is in the format of torch before 1.6; {CONVERT}."
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer to a file in git-lfs, not the file; run git lfs pull."
    return (f"{path} is neither a torch nor a safetensors file: it starts with {start[:12]!r}; "
            "give the downloaded file itself.")


# ---- torch's zip format --------------------------------------------------------------------


# All that a pickle can get hold of is immutable, so that it can change nothing here.
class Storage(NamedTuple):
    """What the pickle says about a storage: the record that holds it, its type and length."""

    record: str
    type: str
    size: int


class Tensor(NamedTuple):
    """What the pickle says about a tensor; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`."""

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, *_):
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    """Stands for `torch._utils._rebuild_parameter`: a tensor and what training needs of it."""

    __slots__ = ()

    def __call__(self, tensor, *_):
        return tensor


ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch", name): name for name in STORAGES},
}


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something else than tensors."""


class _Unpickler(pickle.Unpickler):
    """Knows the names in `ADMITTED` and no others: nothing else can be called or imported."""

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise _Refused(f"{module}.{name}")
        return ADMITTED[module, name]

    def persistent_load(self, pid):
        match pid:
            case "storage", str(kind), record, _, size if kind in STORAGES:
                return Storage(record, kind, size)
        raise pickle.UnpicklingError(f"an unknown reference {str(pid)[:80]}")


def _read_torch_zip(path):
    """name -> array of the state dict in a torch file."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in records if name.split("/")[1:] == ["data.pkl"]]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip file, but not one that torch.save wrote; give "
                                "the file with the weights.")
            root = pickles[0].removesuffix("data.pkl")
            order = root + "byteorder"
            if order in records and archive.read(order) != b"little":
                raise UserError(f"{path} was written on a big-endian machine; {CONVERT}.")
            with archive.open(pickles[0]) as file:
                pickled = _Unpickler(file, encoding="utf-8").load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(f"{path} asks for {error}, and nothing but tensors and plain values is "
                        "admitted, because a pickle can run any program; save the state dict "
                        "alone, or do not use the file.") from None
    except Exception as error:  # damaged input makes zipfile and pickle raise nearly anything
        raise _damaged(path, error) from None
    described, buffer = _state_dict(pickled, path), _mapped(path)
    try:
        return {name: _array(tensor, records, root, buffer) for name, tensor in described.items()}
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise _damaged(path, error) from None


def _state_dict(pickled, path):
    """name -> Tensor; a UserError where there is none."""
    for key in WRAPPERS:
        if isinstance(pickled, dict) and isinstance(pickled.get(key), dict):
            pickled = pickled[key]
    if not isinstance(pickled, dict) or not pickled:
        raise UserError(f"{path} holds no state dict (a dict from names to tensors, by itself or "
                        f"under {' or '.join(map(repr, WRAPPERS))}); save one.")
    for name, value in pickled.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds a {type(value).__name__} at {name!r} where a tensor "
                            "should be; save the state dict alone.")
    return pickled


def _array(tensor, records, root, buffer):
    """A view of the mapped file; ValueError or KeyError where it would not be in there."""
    storage, dtype = tensor.storage, np.dtype(STORAGES[tensor.storage.type])
    info = records[f"{root}data/{storage.record}"]
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its record {info.filename} is compressed")
    # The local header repeats the name; its length may differ from the directory's.
    start = info.header_offset
    name, extra = struct.unpack_from("<26xHH", buffer, start)
    start += 30 + name + extra
    if info.file_size != storage.size * dtype.itemsize or start + info.file_size > len(buffer):
        raise ValueError(f"its record {info.filename} has {info.file_size} bytes")
    if len(tensor.shape) != len(tensor.strides) or any(
            number < 0 for number in (tensor.offset, *tensor.shape, *tensor.strides)):
        raise ValueError("a tensor has a negative size")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    if last >= storage.size:
        raise ValueError(f"a tensor is larger than its record {info.filename}")
    return np.ndarray(tensor.shape, dtype, buffer, start + tensor.offset * dtype.itemsize,
                      tuple(step * dtype.itemsize for step in tensor.strides))


def _mapped(path):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _damaged(path, error):
    return UserError(f"{path} is damaged or was not downloaded completely ({first_line(error)}); "
                     "download it again.")


# ---- safetensors ---------------------------------------------------------------------------


def _read_safetensors(path):
    """name -> array of a safetensors file."""
    header, buffer, start = _open_safetensors(path)
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"{path} holds {name} as {entry['dtype']}, which is not a type that "
                            "weights are trained in; save it as F32 or BF16.")
        dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[name] = np.zeros(entry["shape"], dtype) if 0 in entry["shape"] else np.ndarray(
            entry["shape"], dtype, buffer, start + entry["data_offsets"][0])
    return tensors


def read_metadata(path):
    """The free-text metadata of a safetensors file, a dict; a UserError where it is damaged."""
    return _open_safetensors(local_copy(path))[0].get("__metadata__", {})


def _open_safetensors(path):
    """The header of a valid file, the mapped file, and where its data begin."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header and every offset
            pass
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    buffer = _mapped(path)
    (length,) = struct.unpack_from("<Q", buffer)
    return json.loads(buffer[8:8 + length]), buffer, 8 + length
