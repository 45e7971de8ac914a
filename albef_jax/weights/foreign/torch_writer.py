"""Writes state dicts as `torch.save` does, without torch.

The pickle is put together from opcodes, because the standard pickler would have to import torch to
name its functions.
"""

import os
import pickle
import struct
import zipfile

import numpy as np

from albef_jax.weights.foreign.torch_file import STORAGES

STORAGE_NAMES = {np.dtype(dtype): name for name, dtype in STORAGES.items()}
ALIGNMENT = 64  # bytes; torch maps records that begin at multiples of it


def write_torch_file(path, tensors, wrapper="model"):
    """Writes `{wrapper: {name: tensor}}` in torch's zip format to a new local file.

    Names of one and the same array object share a storage, as tied tensors of torch do.

    Args:
      tensors: name -> numpy array. wrapper: key of the state dict; '' to write it bare.
    """
    storages = {}  # id of an array -> (record, array)
    for array in tensors.values():
        storages.setdefault(id(array), (str(len(storages)), array))
    state_dict = _dict((_text(name), _tensor(array, storages[id(array)][0]))
                       for name, array in tensors.items())
    body = _dict([(_text(wrapper), state_dict)]) if wrapper else state_dict
    root = os.path.splitext(os.path.basename(path))[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _record(archive, f"{root}/data.pkl", pickle.PROTO + b"\x02" + body + pickle.STOP)
        _record(archive, f"{root}/byteorder", b"little")
        for record, array in storages.values():
            # As bytes: buffers know no bfloat16.
            _record(archive, f"{root}/data/{record}",
                    np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
        _record(archive, f"{root}/version", b"3\n")


def _record(archive, name, content):
    """Appends a record whose content begins at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(name)
    header = archive.fp.tell() + 30 + len(name.encode()) + 4  # 4: of the padding's own header
    padding = -header % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # 'FB', as torch names it
    info.file_size = len(content)
    with archive.open(info, "w") as file:
        file.write(content)


# ---- pieces of a pickle, protocol 2 --------------------------------------------------------


def _text(text):
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(number):
    if 0 <= number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    encoded = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _tuple(items):
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _dict(items):
    return (pickle.EMPTY_DICT + pickle.MARK + b"".join(key + value for key, value in items)
            + pickle.SETITEMS)


def _name(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tensor(array, record):
    storage = _tuple([_text("storage"), _name("torch", STORAGE_NAMES[array.dtype]),
                      _text(record), _text("cpu"), _number(array.size)]) + pickle.BINPERSID
    strides = [int(np.prod(array.shape[i + 1:])) for i in range(array.ndim)]
    hooks = _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [storage, _number(0), _tuple(map(_number, array.shape)),
                 _tuple(map(_number, strides)), pickle.NEWFALSE, hooks]
    return _name("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE
