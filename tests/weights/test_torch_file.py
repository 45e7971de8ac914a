"""Reading files of torch and safetensors: every type and stride, and everything hostile."""

import argparse
from collections import defaultdict
import json
import os
import pickle
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from albef_jax.errors import UserError
from albef_jax.weights.foreign.torch_file import LEGACY, STORAGES, read_metadata, read_tensors
from albef_jax.weights.foreign.torch_writer import write_torch_file

DTYPES = [np.dtype(dtype) for dtype in STORAGES.values()]


def some(dtype, shape=(3, 4)):
    return (np.arange(np.prod(shape)) % 7 - 2).astype(dtype).reshape(shape)


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        read_tensors(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", ""])
def test_every_type_comes_back(tmp_path, wrapper):
    tensors = {f"x.{dtype}": some(dtype) for dtype in DTYPES}
    tensors |= {"scalar": np.array(3.5, np.float32), "empty": np.zeros((16, 0), np.float32),
                "transposed": some(np.float32).T, "big": np.array([2**40], np.int64)}
    path = tmp_path / "model.pth"
    write_torch_file(path, tensors, wrapper)
    read = read_tensors(path)
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)
        assert array.size == 0 or not read[name].flags.writeable


def test_nothing_is_read_before_it_is_looked_at(tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file(path, {"x": np.zeros((1000, 1000), np.float32)})
    array = read_tensors(path)["x"]
    assert not array.flags.owndata and type(array.base).__name__ == "mmap"
    assert array.__array_interface__["data"][0] % 64 == 0


def pickled(*tensors):
    """A pickle of `{"model": {"x0": tensor, ...}}` around raw opcodes."""
    items = b"".join(b"X" + struct.pack("<I", 2) + f"x{i}".encode() + tensor
                     for i, tensor in enumerate(tensors))
    return b"\x80\x02}X\x05\x00\x00\x00model}(" + items + b"us."


def tensor(offset=0, shape=(2, 3), strides=(3, 1), size=6, record="0", storage="FloatStorage"):
    """Opcodes of a tensor, with whatever sizes a file may claim."""
    def number(n):
        return b"J" + struct.pack("<i", n)

    def several(numbers):
        return b"(" + b"".join(map(number, numbers)) + b"t"

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    pid = (b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(record) + text("cpu")
           + number(size) + b"tQ")
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + several(shape)
            + several(strides) + b"\x89ccollections\nOrderedDict\n)RtR")


def torch_zip(path, body, records=None, compression=zipfile.ZIP_STORED, order=b"little"):
    records = {"0": np.arange(6, dtype=np.float32).tobytes()} if records is None else records
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(zipfile.ZipInfo("m/data.pkl"), body)
        archive.writestr("m/byteorder", order)
        for name, content in records.items():
            archive.writestr(f"m/data/{name}", content)
    return path


def test_strides_offsets_and_shared_storages(tmp_path):
    path = torch_zip(tmp_path / "m.pth", pickled(
        tensor(), tensor(0, (3, 2), (1, 3)), tensor(4, (2,), (1,)), tensor(1, (), ()),
        tensor(2, (3, 2), (0, 1))))
    x = read_tensors(path)
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(x["x0"], whole)
    np.testing.assert_array_equal(x["x1"], whole.T)
    np.testing.assert_array_equal(x["x2"], [4, 5])
    assert x["x3"] == 1 and x["x3"].shape == ()
    np.testing.assert_array_equal(x["x4"], [[2, 3]] * 3)


def test_a_parameter_is_a_tensor(tmp_path):
    body = pickled(b"ctorch._utils\n_rebuild_parameter\n(" + tensor()
                   + b"\x88ccollections\nOrderedDict\n)RtR")
    assert read_tensors(torch_zip(tmp_path / "m.pth", body))["x0"].shape == (2, 3)


@pytest.mark.parametrize("wrong", [
    dict(shape=(2, 4), strides=(4, 1)), dict(offset=1), dict(offset=-1), dict(shape=(-2, 3)),
    dict(strides=(-3, 1)), dict(size=7), dict(record="1"), dict(shape=(2,)),
    dict(storage="DoubleStorage"), dict(strides=(2**30, 1))])
def test_tensors_outside_their_record(tmp_path, wrong):
    refused(torch_zip(tmp_path / "m.pth", pickled(tensor(**wrong))), "is damaged or was not")


def test_a_malicious_pickle_does_nothing(tmp_path, capfd):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}; echo executed",)

    for i, content in enumerate([Attack(), {"model": {"w": Attack()}}, [Attack()]]):
        for protocol in (0, 2, 4):
            path = torch_zip(tmp_path / f"{i}{protocol}.pth", pickle.dumps(content, protocol))
            refused(path, r"asks for (posix|nt)\.system, and nothing but tensors")
    assert not marker.exists() and "executed" not in capfd.readouterr().out


@pytest.mark.parametrize("name", [
    "builtins\neval", "builtins\ngetattr", "torch\nload", "torch\n_utils._rebuild_tensor_v2",
    "torch._utils\n_rebuild_tensor_v2.__class__", "collections\nOrderedDict.fromkeys",
    "numpy.core.multiarray\n_reconstruct", "torch\nStorages", "copyreg\n_reconstructor"])
def test_names_beside_the_admitted_ones(tmp_path, name):
    body = pickled(f"c{name}\n".encode() + b"(tR")
    refused(torch_zip(tmp_path / "m.pth", body), "nothing but tensors and plain values")


def test_a_pickle_changes_nothing_here(tmp_path):
    """BUILD sets attributes on what the pickle holds; later files must read as before."""
    state = b"}X\x07\x00\x00\x00__doc__X\x01\x00\x00\x00xs"
    for target in (b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
                   b"ccollections\nOrderedDict\n", tensor()):
        for built in (target + state + b"b", target + b"N" + state + b"\x86b"):
            path = torch_zip(tmp_path / "m.pth", pickled(built))
            with pytest.raises(UserError):
                read_tensors(path)
            path.unlink()
    good = torch_zip(tmp_path / "good.pth", pickled(tensor()))
    np.testing.assert_array_equal(read_tensors(good)["x0"].reshape(-1), np.arange(6))


def test_every_truncation(tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file(path, {"x": some(np.float32), "y": some(np.int64)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refused(path, "is empty|damaged|neither a torch")


def test_damaged_pickles(tmp_path):
    body = pickled(tensor())
    for cut in range(0, len(body), 11):
        refused(torch_zip(tmp_path / "m.pth", body[:cut]), "damaged|holds")
    refused(torch_zip(tmp_path / "m.pth", pickled(b"X\x02\x00\x00\x00hi")), "holds a str at 'x0'")
    refused(torch_zip(tmp_path / "m.pth", pickle.dumps([1, 2], 2)), "holds no state dict")
    refused(torch_zip(tmp_path / "m.pth", pickle.dumps({}, 2)), "holds no state dict")


def test_files_of_other_sorts(tmp_path):
    path = tmp_path / "model.pth"
    for content, match in [
            (b"", "is empty"), (LEGACY + b"more", "format of torch before 1.6.*torch.save"),
            (b"\0" * 257 + b"ustar" + b"\0" * 200, "format of torch before 1.6"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"<!DOCTYPE html>", "neither a torch nor a safetensors file"),
            (struct.pack("<Q", 40) + b"{not json", "damaged")]:
        path.write_bytes(content)
        refused(path, match)
    refused(tmp_path, "is a folder")
    refused(tmp_path / "absent.pth", "cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    refused(path, "not one that torch.save wrote")
    refused(torch_zip(path, pickled(tensor()), compression=zipfile.ZIP_DEFLATED), "is compressed")
    refused(torch_zip(path, pickled(tensor()), order=b"big"), "big-endian machine")


def test_safetensors(tmp_path):
    path = tmp_path / "model.bin"  # the content decides, not the name
    tensors = {"a": some(np.float32), "b": np.array(7, np.int64), "c": some(np.float16)}
    save_file(tensors, path, {"format": "np"})
    read = read_tensors(path)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert read_metadata(path) == {"format": "np"}
    whole = path.read_bytes()
    for length in (9, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged")


def test_bfloat16_safetensors(tmp_path):
    values = some(ml_dtypes.bfloat16)
    header = b'{"x":{"dtype":"BF16","shape":[3,4],"data_offsets":[0,24]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    np.testing.assert_array_equal(read_tensors(path)["x"], values)


def test_against_torch(tmp_path):
    """What torch writes we read, what we write its weights-only loader reads."""
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"whole": base, "columns": base[:, 1:3], "transposed": base.T, "half": base.half(),
             "brain": base.bfloat16(), "ids": torch.arange(5), "scalar": torch.tensor(0.5),
             "parameter": torch.nn.Parameter(base.clone())}
    torch.save({"model": saved, "epoch": 3, "optimizer": {"lr": 0.1, "state": [base]}},
               tmp_path / "torch.pth")
    ours = read_tensors(tmp_path / "torch.pth")
    assert list(ours) == list(saved)
    for name, value in saved.items():
        np.testing.assert_array_equal(ours[name].astype(np.float32), value.detach().float())
        assert ours[name].shape == tuple(value.shape)
    write_torch_file(tmp_path / "ours.pth", dict(ours))
    for mapped in (False, True):
        theirs = torch.load(tmp_path / "ours.pth", weights_only=True, mmap=mapped)["model"]
        assert all(torch.equal(theirs[name], value) and theirs[name].dtype == value.dtype
                   for name, value in saved.items())
    torch.save(saved, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pth", "format of torch before 1.6")


# ---- what people's files hold beside tensors -------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def opcodes(value):
    """Those of a plain value, to stand in the middle of a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def dict_of(**items):
    """A pickled dict of values, which are opcodes."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(body):
    return b"\x80\x02" + body + b"."


STATE = dict_of(w=tensor())


def test_what_training_code_adds_is_read_over(tmp_path):
    added = {"args": argparse.Namespace(lr=1e-3, opt="adamw", steps=[1, 2]),
             "best": np.float64(81.5), "count": np.int64(3), "names": defaultdict(list, a=[1]),
             "nested": {"epoch": 3, "config": [1.5, None, True, "x"]}}
    path = torch_zip(tmp_path / "m.pth", whole(dict_of(
        **{key: opcodes(value) for key, value in added.items()}, model=STATE,
        optimizer=dict_of(state=dict_of(exp_avg=tensor())))))
    assert read_tensors(path)["w"].shape == (2, 3)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "net", "teacher",
                                     "student", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module.", "_orig_mod."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    state = dict_of(**{f"{prefix}a.w": tensor(), f"{prefix}b.w": tensor()})
    body = whole(dict_of(epoch=opcodes(3), **{wrapper: state}))
    assert set(read_tensors(torch_zip(tmp_path / "m.pth", body))) == {"a.w", "b.w"}


def test_one_of_several_state_dicts(tmp_path):
    both = {"teacher": dict_of(t=tensor()), "student": dict_of(s=tensor())}
    path = torch_zip(tmp_path / "dino.pth", whole(dict_of(**both)))
    refused(path, r"holds the state dicts 'teacher', 'student'; choose one, as .*dino.pth::teacher")
    assert set(read_tensors(f"{path}::student")) == {"s"}
    with pytest.raises(UserError, match="none under 'ema'; choose one, as"):
        read_tensors(f"{path}::ema")
    ema = torch_zip(tmp_path / "timm.pth", whole(dict_of(
        state_dict=dict_of(a=tensor()), state_dict_ema=dict_of(b=tensor()))))
    assert set(read_tensors(ema)) == {"a"} and set(read_tensors(f"{ema}::state_dict_ema")) == {"b"}
    plain = torch_zip(tmp_path / "plain.pth", whole(STATE))
    with pytest.raises(UserError, match="one state dict, and none under 'model'; leave out ::"):
        read_tensors(f"{plain}::model")
    itself = whole(b"}q\x09" + text("model") + b"h\x09s")
    refused(torch_zip(tmp_path / "loop.pth", itself), "where a tensor should be")


# ---- damage and malice -----------------------------------------------------------------------


def test_every_flipped_bit_of_the_data_is_noticed(tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file(path, {"x": np.random.default_rng(0).normal(size=500).astype(np.float32)})
    read_tensors(path)
    complete = path.read_bytes()
    begin = complete.index(read_tensors(path)["x"].tobytes())
    for place in np.random.default_rng(1).integers(begin, begin + 2000, 20).tolist():
        damaged = bytearray(complete)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        refused(path, "is damaged or was not downloaded completely .the checksum of its record")


def doubled(times):
    """Opcodes of a tuple whose parts are doubled so often."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


@pytest.mark.parametrize("body", [
    whole(b"}" + b")" + b"\x85" * 1_000_000 + b"K\x01s"),  # a key that is nested
    whole(b"}" + doubled(40) + b"K\x01s"),  # one whose hash never ends
    whole(doubled(40) + b"Q"), whole(b")" + b"\x85" * 100_000 + b"Q"),  # references likewise
    whole(b"(" * 100_000 + b"t" * 100_000)], ids=["deep", "laughs", "pid", "deep pid", "marks"])
def test_values_that_never_end(tmp_path, body):
    begin = time.monotonic()
    refused(torch_zip(tmp_path / "m.pth", body, compression=zipfile.ZIP_DEFLATED),
            "is damaged or was not downloaded")
    assert time.monotonic() - begin < 20


def test_sizes_that_nothing_stands_behind(tmp_path):
    huge = tensor(shape=(2**20, 2**20), strides=(0, 0))
    refused(torch_zip(tmp_path / "m.pth", pickled(huge)), "a tensor is larger than its record")
    path = tmp_path / "m.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [0, 2**62, 2**62],
                               "data_offsets": [0, 0]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(path, "is damaged or was not downloaded")
