"""Tensors in files, without torch and without running what a pickle asks for.

A `.pth` in the zip format of torch >= 1.6 is a small pickle that names its tensors and one plain,
uncompressed buffer per storage. The pickle is read by an unpickler that knows tensors, storages
and dicts, keeps what training code adds (arguments, counts) as things that do nothing, and refuses
everything else; the buffers are mapped into memory, and compared with their checksums once.
Safetensors files are mapped likewise, and have none.
"""

from collections import OrderedDict
import io
import json
import math
import mmap
import os
import pickle
import struct
from typing import NamedTuple
import zipfile
import zlib

import ml_dtypes
import numpy as np

from albef_jax.errors import UserError, first_line
from albef_jax.files import local_copy
from albef_jax.weights.foreign.pickle_bounds import BYTES, check_pickle

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
# Keys under which training code keeps the state dict; of those in a line the first is taken, of
# several lines a person must say which.
WRAPPERS = (("model", "state_dict", "model_state_dict", "net", "module",
             "model_ema", "state_dict_ema", "ema"), ("teacher",), ("student",))
# What wrappers put before every name: DataParallel, torch.compile, Lightning and others.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
NESTED = 4  # of them in each other
CHOOSE = "::"  # between a file and the key of a state dict in it
# First bytes of torch's format before 1.6: a pickled magic number, protocol 2.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
CONVERT = ("on a machine with torch, run torch.save(torch.load(FILE, map_location='cpu', "
           "weights_only=True), NEW_FILE) and give the new file")


def read_tensors(path):
    """The tensors of a `.pth`, `.pt`, `.bin`, `.safetensors` or `.npz` file; the content tells which.

    State dicts under a key are unwrapped (see `WRAPPERS`), and prefixes that all names have are
    left out (see `PREFIXES`).

    Args:
      path: a local file; `FILE::KEY` takes the state dict under that key.

    Returns:
      name -> read-only numpy array, mapped from the file: nothing is read until it is looked at.
      bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      UserError: not such a file, cut short, damaged, or a pickle that holds anything else than
        tensors and plain values.
    """
    path, _, key = str(path).partition(CHOOSE)
    path = local_copy(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; give the file with the weights.")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"The weights {path} cannot be read ({error.strerror}); check the "
                        "path.") from None
    if start.startswith(b"PK\x03\x04") and start[30:512].split(b"PK")[0].partition(b".npy")[1]:
        return _read_npz(path)
    if start.startswith(b"PK\x03\x04"):
        return without_prefixes(_read_torch_zip(path, key))
    if start[8:9] == b"{":
        return without_prefixes(_read_safetensors(path))
    raise UserError(_what_else(path, start))


def _read_npz(path):
    """name -> array of numpy's archive, such as the original ViT's; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # damaged input makes zipfile and numpy raise nearly anything
        raise _damaged(path, error) from None


def without_prefixes(tensors):
    """The same tensors under their names without what all of these begin with, see `PREFIXES`."""
    for prefix in PREFIXES * 2:  # in any order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return tensors


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


class Inert:
    """Stands for what training code keeps beside tensors: it takes anything and does nothing."""

    __slots__ = ()

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def __setstate__(self, state):
        """Forgets it."""


class _Function:
    """A function that a pickle may call."""

    __slots__ = ("_result",)

    def __init__(self, result):
        object.__setattr__(self, "_result", result)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError(f"it sets {name}")

    def __call__(self, *arguments):
        return self._result(*arguments)


INERT = (("argparse", "Namespace"), ("numpy", "dtype"), ("_codecs", "encode"),
         *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
         *((module, name) for module in ("builtins", "__builtin__")
           for name in ("dict", "list", "int", "float", "set")), ("torch", "device"))
ADMITTED = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("torch", "Size"): _Function(lambda sizes=(): tuple(sizes)),
    **dict.fromkeys(INERT, Inert),
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
        raise pickle.UnpicklingError("a reference to something else than a storage")


def _read_torch_zip(path, key=""):
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
            if records[pickles[0]].file_size > BYTES:
                raise ValueError(f"its pickle has {records[pickles[0]].file_size} bytes")
            contents = archive.read(pickles[0])
            check_pickle(contents)
            pickled = _Unpickler(io.BytesIO(contents), encoding="utf-8").load()
    except UserError:
        raise
    except _Refused as error:
        raise UserError(f"{path} asks for {error}, and nothing but tensors and plain values is "
                        "admitted, because a pickle can run any program; save the state dict "
                        "alone, or do not use the file.") from None
    except Exception as error:  # damaged input makes zipfile and pickle raise nearly anything
        raise _damaged(path, error) from None
    described, buffer = _state_dict(pickled, path, key), _mapped(path)
    try:
        _check_sums(described.values(), records, root, buffer)
        return {name: _array(tensor, records, root, buffer) for name, tensor in described.items()}
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise _damaged(path, error) from None


def _state_dict(pickled, path, key=""):
    """name -> Tensor; a UserError where there is none, or several."""
    for _ in range(NESTED):
        there = {one: value for one, value in pickled.items()
                 if isinstance(one, str) and isinstance(value, dict)} if isinstance(
                     pickled, dict) else {}
        if not there:
            break
        fitting = [next((one for one in line if one in there), None) for line in WRAPPERS]
        fitting = [key] if key in there else [one for one in fitting if one]
        if key and not fitting[:1] == [key] or len(fitting) > 1:
            raise UserError(f"{path} holds the state dicts {', '.join(map(repr, there))}"
                            f"{f' and none under {key!r}' if key else ''}; choose one, as "
                            f"{path}{CHOOSE}{fitting[0] if fitting else [*there][0]}.")
        if not fitting:
            break
        pickled, key = there[fitting[0]], ""
    if key:
        raise UserError(f"{path} holds one state dict, and none under {key!r}; leave out "
                        f"{CHOOSE}{key}.")
    known = ", ".join(repr(one) for line in WRAPPERS for one in line)
    if not isinstance(pickled, dict) or not pickled:
        raise UserError(f"{path} holds no state dict (a dict from names to tensors, by itself or "
                        f"under one of {known}); save one.")
    for name, value in pickled.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = "plain value" if isinstance(value, Inert) else type(value).__name__
            raise UserError(f"{path} holds a {what} at {str(name)[:80]!r} where a tensor should "
                            "be; save the state dict alone.")
    return pickled


def _check_sums(tensors, records, root, buffer):
    """ValueError where a record that is used is not what was written: one flipped bit, say."""
    for name in dict.fromkeys(f"{root}data/{tensor.storage.record}" for tensor in tensors):
        start, info = _start(records[name], buffer), records[name]
        with memoryview(buffer) as whole, whole[start:start + info.file_size] as record:
            if zlib.crc32(record) != info.CRC:
                raise ValueError(f"the checksum of its record {name} is wrong")


def _start(info, buffer):
    """Where the contents of a record begin; ValueError where they are not plain."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its record {info.filename} is compressed")
    # The local header repeats the name; its length may differ from the directory's.
    name, extra = struct.unpack_from("<26xHH", buffer, info.header_offset)
    return info.header_offset + 30 + name + extra


def _array(tensor, records, root, buffer):
    """A view of the mapped file; ValueError or KeyError where it would not be in there."""
    storage, dtype = tensor.storage, np.dtype(STORAGES[tensor.storage.type])
    info = records[f"{root}data/{storage.record}"]
    start = _start(info, buffer)
    if info.file_size != storage.size * dtype.itemsize or start + info.file_size > len(buffer):
        raise ValueError(f"its record {info.filename} has {info.file_size} bytes")
    if len(tensor.shape) != len(tensor.strides) or any(
            number < 0 for number in (tensor.offset, *tensor.shape, *tensor.strides)):
        raise ValueError("a tensor has a negative size")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides))
    if last >= storage.size or math.prod(tensor.shape) > storage.size:
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
        try:
            tensors[name] = np.zeros(entry["shape"], dtype) if 0 in entry["shape"] else np.ndarray(
                entry["shape"], dtype, buffer, start + entry["data_offsets"][0])
        except ValueError as error:  # none of its numbers is stored, but one of its sizes is huge
            raise _damaged(path, error) from None
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
