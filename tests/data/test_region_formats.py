"""Every format of regions that people have: what is in it, and everything that can be wrong."""

import base64
import io
import json
import os
from pathlib import Path
import pickle
import shutil

import h5py
import lmdb
import numpy as np
import pytest

from albef_jax.cli import main
from albef_jax.data.fields.regions import DetectedRegionsField
from albef_jax.data.sources.region_files import FeatureFolder, RegionsTsv, open_regions
from albef_jax.data.sources.regions import Regions
from albef_jax.data.sources.regions_json import names_of
from albef_jax.data.sources import make_source
from albef_jax.errors import UserError

FORMATS = Path(__file__).parents[1] / "golden" / "imagebert" / "formats"
EXPECTED = dict(np.load(FORMATS / "expected.npz"))
IDS = ("42", "1007", "580294")
# File -> whether it holds pixels and the image size, and what it tells of classes: nothing, or the
# class and its probability. Halves are what float16 keeps.
FILES = {
    "bua.tsv": (True, None), "bua_header.tsv": (True, None), "bua_header_other_order.tsv":
    (True, None), "m5product.tsv": (True, None), "bua_cls_prob.tsv": (True, 1e-6),
    "bua_cls_prob_header.tsv": (True, 1e-6), "lxmert.tsv": (True, 1e-6),
    "lxmert_header.tsv": (True, 1e-6), "vinvl/features.tsv": (False, None),
    "native_npz": (True, 1e-6), "uniter_npz": (False, 1e-3),
    "uniter_lmdb/feat_th0.2_max100_min10_compressed": (False, 1e-3), "vilbert_lmdb": (True, 1e-6),
    "by_image.hdf5": (True, 1e-6), "adaptive.hdf5": (False, None), "fixed2.hdf5": (False, None)}


def expected(name):
    """The regions of an image as they were written."""
    parts = ("feats", "boxes", "cls_id", "cls_conf")
    features, boxes, classes, confidences = (EXPECTED[f"{name}/{part}"] for part in parts)
    size = float(EXPECTED[f"{name}/width"]), float(EXPECTED[f"{name}/height"])
    return Regions(features, boxes, size, classes, confidences)


@pytest.mark.parametrize("file", FILES)
def test_every_format_gives_what_was_written(file):
    (pixels, exactness), store = FILES[file], open_regions(str(FORMATS / file))
    names = dict(zip(IDS, (f"test_{int(name):012}" for name in IDS))) if "uniter" in file else (
        dict(zip(IDS, IDS)))
    assert sorted(store.names()) == sorted(names.values()) and "901" not in store
    for name in IDS:
        assert names[name] in store
        read, written = store.read(names[name]), expected(name)
        if file == "fixed2.hdf5":
            written = written.rows(np.arange(2))
        half = 1e-3 if "uniter" in file else 1e-6
        np.testing.assert_allclose(read.features, written.features, rtol=half)
        scale = (1, 1) if pixels else written.size
        assert read.size == (written.size if pixels else (1, 1))
        np.testing.assert_allclose(read.boxes * np.tile(scale, 2), written.boxes,
                                   atol=0.3 if "uniter" in file else 1e-4)
        if exactness is None:
            assert read.classes is None and read.confidences is None
        else:
            np.testing.assert_array_equal(read.classes, written.classes)
            np.testing.assert_allclose(read.confidences, written.confidences, rtol=exactness)
    with pytest.raises(FileNotFoundError):
        store.read("901")


def load(data_config, store, names, length=5):
    """The arrays and problems of images, as training reads them."""
    data_config.update(regions_length=length, regions_width=8)
    field = DetectedRegionsField(data_config, 6)
    return field.load([lambda name=name: store.read(name) for name in names],
                      [None] * len(names), False)


def test_the_most_confident_of_too_many(data_config):
    for file, rule in (("lxmert.tsv", "keep3_by_conf"), ("bua.tsv", "keep3_without_conf")):
        arrays, problems = load(data_config, open_regions(str(FORMATS / file)), IDS, 3)
        assert not any(problems)
        for row, name in enumerate(IDS):
            kept = EXPECTED[f"{name}/{rule}"]
            np.testing.assert_array_equal(arrays["regions"][row, :len(kept)],
                                          EXPECTED[f"{name}/feats"][kept])
            np.testing.assert_allclose(arrays["regions_box"][row, :len(kept)],
                                       EXPECTED[f"{name}/location"][kept], rtol=1e-6)


@pytest.mark.parametrize("file", ["bua_corrupt", "bua_clip"])
def test_damaged_rows_are_told_and_the_others_read(data_config, file):
    recorded = json.loads((FORMATS / "expected.json").read_text())[file]
    store = open_regions(str(FORMATS / f"{file}.tsv"))
    names = store.names()
    arrays, problems = load(data_config, store, names)
    bad = [name for name, problem in zip(names, problems) if problem]
    assert bad == [row["image_id"] for row in recorded["bad_lines"]]
    assert len(bad) == recorded["skipped"]
    assert [name for name in names if name not in bad] == recorded["good_ids_in_order"]
    if file == "bua_clip":
        kept = EXPECTED["77/kept_rows"]
        np.testing.assert_array_equal(arrays["regions"][0, :3], EXPECTED["77/feats"])
        np.testing.assert_allclose(arrays["regions_box"][0, :3], EXPECTED["77/location"], rtol=1e-6)
        assert len(store.read("77").features) == 3 + len(kept)
        assert recorded["dropped_boxes"] == 5


def test_check_counts_boxes_widths_classes_and_damage(tmp_path, capsys):
    rows = [{"image": f"val_{int(name):012}.jpg", "caption": "a dog"} for name in
            (*IDS, "901", "903", "77") * 4]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "config.py").write_text(
        "from albef_jax.config import default_config\n\n\ndef get_config(variant=None):\n"
        "    config = default_config('imagebert_pretrain')\n    config.data.update(\n"
        "        regions_width=8, max_bad_share=0.5, vocab_size=60)\n"
        "    config.batch_size = config.group_size = 2\n    config.data.source = dict(\n"
        f"        kind='regions', files=({str(tmp_path / 'rows.json')!r},), regions=(\n"
        f"            {str(FORMATS / 'lxmert.tsv')!r}, {str(FORMATS / 'bua_corrupt.tsv')!r},\n"
        f"            {str(FORMATS / 'bua_clip.tsv')!r}))\n    return config\n")
    assert main(["data", "check", "--config", str(tmp_path / "config.py")]) == 2
    said = capsys.readouterr().out
    assert "2 to 6 per row" in said and "8 numbers of class 0" in said, said
    assert "no area inside the image (" in said
    assert "broken values of regions: 1 (val_000000000901.jpg" in said


def test_rows_find_their_image_under_any_name(tmp_path):
    assert names_of("train2014/COCO_train2014_000000000042.jpg") == [
        "train2014/COCO_train2014_000000000042", "COCO_train2014_000000000042",
        "coco_train2014_000000000042", "42"]
    (tmp_path / "rows.json").write_text('[{"image": "TEST_000000000042.jpg", "caption": "a dog"}, '
                                        '{"image": "other.jpg", "caption": "a cat"}]')
    for file in ("lxmert.tsv", "uniter_npz"):
        source = make_source(dict(kind="regions", files=str(tmp_path / "rows.json"),
                                  image_roots=str(tmp_path), regions=str(FORMATS / file)))
        np.testing.assert_array_equal(source.get(0, "regions").classes, expected("42").classes)
        with pytest.raises(FileNotFoundError, match="no file of regions has it"):
            source.get(1, "regions")
        assert source.fields["regions"] == {"width": 8}


# ---- what is refused in one sentence -------------------------------------------------------


def refused(path, *parts):
    with pytest.raises(UserError) as error:
        open_regions(str(path))
    assert all(part in str(error.value) for part in parts), error.value


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "x.tsv").write_text("1\t2\t3\t4\n")
    refused(tmp_path / "x.tsv", "is no TSV with the columns", "LXMERT or VinVL")
    (tmp_path / "x.hdf5").write_bytes(b"nothing")
    refused(tmp_path / "x.hdf5", "cannot be read")
    (tmp_path / "x.mdb").write_bytes(b"nothing")
    refused(tmp_path / "x.mdb", "cannot be read")
    refused(tmp_path / "none", "does not exist")
    shutil.copy(FORMATS / "fixed2.hdf5", tmp_path / "rows.hdf5")
    refused(tmp_path / "rows.hdf5", "rows_imgid2idx.json or .pkl")
    (tmp_path / "rows_imgid2idx.json").write_text("[3]")
    refused(tmp_path / "rows.hdf5", "is no index from image ids to rows")


def test_the_line_index_of_another_file(tmp_path):
    shutil.copytree(FORMATS / "vinvl", tmp_path / "vinvl")
    index = tmp_path / "vinvl" / "features.lineidx"
    for text in ("0\n300\n466\n", "0\n9999\n", "nothing\n", "-4\n306\n"):
        os.chmod(index, 0o644)
        index.write_text(text)
        refused(tmp_path / "vinvl" / "features.tsv", "is not that of", "delete it")
    index.unlink()
    assert RegionsTsv(str(tmp_path / "vinvl" / "features.tsv")).names() == list(IDS)


def test_a_wrong_count_of_vinvl_is_noticed(data_config, tmp_path):
    features = np.concatenate([np.ones((4, 8)), np.tile([0, 0, 0.5, 0.5, 0.5, 0.5], (4, 1))], 1)
    text = base64.b64encode(features.astype("<f4").tobytes()).decode()
    for count, why in ((4, None), (2, "[2, 22], not [n, 8]"), (8, "do not end with")):
        (tmp_path / "x.tsv").write_text(f"1\t{count}\t{text}\n")
        _, problems = load(data_config, open_regions(str(tmp_path / "x.tsv")), ["1"])
        assert why in problems[0] if why else not any(problems), problems


class Runs:
    """What a malicious pickle does when it is read."""

    def __reduce__(self):
        return (print, ("this must not be printed",))


def write_lmdb(path, **values):
    environment = lmdb.open(str(path), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    environment.close()


def test_no_pickle_can_run_anything(tmp_path, capsys):
    row = dict(image_h=3, image_w=4, num_boxes=1, boxes=base64.b64encode(b"\0" * 16),
               features=base64.b64encode(b"\0" * 32))
    encode = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R."
    write_lmdb(tmp_path / "store", run=pickle.dumps(row | {"extra": Runs()}), text=b"hello",
               encode=encode, cut=pickle.dumps(row)[:-9], other=pickle.dumps([1, 2]),
               good=pickle.dumps(row, protocol=2))
    store = open_regions(str(tmp_path / "store"))
    assert store.read("good").features.shape == (1, 8)
    for name, why in (("run", "it holds a builtins.print"), ("text", "neither an .npz nor"),
                      ("encode", "it calls _codecs.encode"), ("cut", "damaged pickle"),
                      ("other", "damaged pickle")):
        with pytest.raises(OSError, match=why):
            store.read(name)
    shutil.copy(FORMATS / "fixed2.hdf5", tmp_path / "rows.hdf5")
    (tmp_path / "rows_imgid2idx.pkl").write_bytes(pickle.dumps({42: Runs()}))
    refused(tmp_path / "rows.hdf5", "is no index", "it holds a builtins.print")
    assert "must not" not in capsys.readouterr().out


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_arrays_that_do_not_fit(tmp_path):
    whole = dict(features=np.ones((2, 3)), boxes=np.ones((2, 4)), size=[4, 5], classes=[1, 2])
    wrong = {"no features": dict(boxes=1), "boxes of shape": {"boxes": np.ones((3, 4))},
             "classes of shape": {"classes": [1]}, "an image of 0 x 5": {"size": [0, 5]},
             "not finite": {"boxes": np.full((2, 4), np.nan)},
             "classes float64": {"classes": [0.5, 1]}, "features of shape": {"features": [1.0]},
             "no boxes": {"boxes": None}}
    for why, change in wrong.items():
        arrays = change if why == "no features" else {
            name: value for name, value in (whole | change).items() if value is not None}
        (tmp_path / "one.npz").write_bytes(npz(**arrays))
        with pytest.raises(OSError, match=why):
            FeatureFolder(str(tmp_path), ".npz").read("one")
    (tmp_path / "one.npz").write_bytes(npz(features=np.array([{}], object)))
    with pytest.raises(OSError, match="no file of features"):
        FeatureFolder(str(tmp_path), ".npz").read("one")


def test_hdf5_with_a_row_that_is_not_there(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["image_features"], file["spatial_features"] = np.ones((1, 2, 3)), np.ones((1, 2, 6))
    (tmp_path / "x_imgid2idx.json").write_text('{"1": 0, "2": 7}')
    store = open_regions(str(tmp_path / "x.hdf5"))
    assert store.read("1").boxes.shape == (2, 4)
    with pytest.raises(OSError):
        store.read("2")
