"""Products in manifests and in the files of M5Product; what is missing and what is wrong."""

import base64
import json

import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.fields import open_fields
from albef_jax.data.fields.label import LabelField
from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.title import TitleField
from albef_jax.data.pipeline import TrainPipeline
from albef_jax.data.sources import make_source
from albef_jax.data.sources.products import ProductSource
from albef_jax.data.sources.region_files import RegionsTsv
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError
from albef_jax.preflight import look
from albef_jax.preflight.check import check

RNG = np.random.default_rng(0)
REGIONS = {name: (RNG.normal(size=(n, 4)).astype(np.float32),
                  RNG.uniform(0, 30, (n, 4)).astype(np.float32)) for name, n in
           (("11", 3), ("12", 2), ("14", 1))}
OFFICIAL = {"11": {"title": "red lamp", "pv": "colour#:#red#;#kind#:#lamp", "label": "lamps",
                   "url": "http://example.com"},
            "12": {"title": "green bell", "pv": "-", "label": "bells", "url": ""},
            "13": {"title": "blue bell", "pv": "colour#:#blue", "label": "bells", "url": ""}}


def tsv_line(name, features, boxes, *title):
    packed = (base64.b64encode(array.tobytes()).decode() for array in (boxes, features))
    return "\t".join([name, "40", "30", str(len(boxes)), *packed, *title])


@pytest.fixture
def official(tmp_path):
    """The official files in small; the block that reads them."""
    (tmp_path / "id_info.json").write_text(json.dumps(OFFICIAL))
    lines = [tsv_line(name, *both, "some title") for name, both in REGIONS.items()]
    (tmp_path / "regions.tsv").write_text("\n".join(lines) + "\n")
    for folder, names, shape in (("video", "11 13", (5, 6)), ("audio", "13", (3, 7))):
        (tmp_path / folder).mkdir()
        for name in names.split():
            np.save(tmp_path / folder / f"{name}.npy", np.full(shape, int(name), np.float16))
    return dict(kind="products", files=str(tmp_path / "id_info.json"),
                regions=str(tmp_path / "regions.tsv"), video=str(tmp_path / "video"),
                audio=str(tmp_path / "audio"))


@pytest.fixture
def products_of(tmp_path):
    def make(*rows, **options):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return make_source(dict(kind="products", files=str(tmp_path / "rows.json"), **options))

    return make


def test_official_files_load_unchanged(official):
    source = make_source(official)
    assert [source.name(i) for i in range(3)] == ["11", "12", "13"]
    assert [source.modalities(i) for i in range(3)] == [
        ("title", "regions", "table", "video"), ("title", "regions"),
        ("title", "table", "video", "audio")]
    assert source.title(1) == ["green bell"]
    assert source.table(0) == [("colour", "red"), ("kind", "lamp")] and source.table(1) is None
    features, boxes = REGIONS["12"]
    found = source.regions(1)
    np.testing.assert_array_equal(found.features, features)
    np.testing.assert_array_equal(found.boxes, boxes)
    assert found.size == (40, 30) and source.regions(2) is None
    assert source.video(2).shape == (5, 6) and source.video(2)[0, 0] == 13
    assert source.audio(0) is None and source.audio(2).shape == (3, 7)
    assert source.fields == {
        "title": {"optional": True, "cleaning": "none"}, "table": {"optional": True},
        "regions": {"optional": True, "width": 4}, "video": {"optional": True, "width": 6},
        "audio": {"optional": True, "width": 7},
        "label": {"class_names": ("bells", "lamps")}, "coarse": {}, "fine": {}}
    assert [source.label(i) for i in range(3)] == [1, 0, 0] and source.fine(0) == "lamps"
    assert list(source.words())[:3] == ["red lamp", "colour", "red"]


@pytest.mark.parametrize("write", [
    lambda rows: json.dumps([{"item_id": int(name), **row} for name, row in rows.items()]),
    lambda rows: "\n".join(json.dumps({"table": {"colour": "red"}, "id": name, **row})
                           for name, row in rows.items()),
], ids=["list", "lines"])
def test_other_forms_of_a_manifest(official, tmp_path, write):
    (tmp_path / "id_info.json").write_text(write(OFFICIAL))
    source = make_source(official)
    assert [source.name(i) for i in range(3)] == ["11", "12", "13"]
    assert source.modalities(2) == ("title", "table", "video", "audio")


def test_rows_of_our_own(products_of, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"AAA")
    np.save(tmp_path / "clip.npy", np.ones((2, 3)))
    np.savez(tmp_path / "a.npz", features=np.ones((2, 5)), boxes=np.ones((2, 4)), size=[8, 9])
    source = products_of(
        {"image": "a.jpg", "video": "clip.npy", "category": ["home", "light"], "instance": "x"},
        {"id": 7, "attributes": {"colour": "red"}, "image": "a.npz", "category": ["home", "bell"],
         "instance": "y"}, regions=str(tmp_path))
    assert [source.name(i) for i in range(2)] == ["a", "7"]
    assert source.modalities(0) == ("regions", "video") and source.picture(0) == b"AAA"
    assert source.title(0) == [] and source.table(0) is None and source.picture(1) is None
    for row in range(2):
        assert source.regions(row).features.shape == (2, 5) and source.regions(row).size == (8, 9)
    assert [source.coarse(i) for i in range(2)] == ["home", "home"]
    assert [source.fine(i) for i in range(2)] == ["x", "y"]


def test_classes_are_those_of_a_level_and_may_come_from_elsewhere(products_of, tmp_path):
    rows = [{"id": 1, "title": "a", "category": ["x", "b"]},
            {"id": 2, "title": "b", "category": ["x", "a"]}]
    source = products_of(*rows, coarse=1, fine=0)
    assert source.fields["label"]["class_names"] == ("a", "b") and source.fine(0) == "x"
    (tmp_path / "labels.json").write_text('["c", "b", "a"]')
    assert products_of(*rows, coarse=1, classes=str(tmp_path / "labels.json")).label(0) == 1
    (tmp_path / "train.json").write_text(json.dumps(rows))
    held_out = products_of(rows[0], coarse=1, classes=str(tmp_path / "train.json"))
    assert held_out.label(0) == 1 and len(held_out.fields["label"]["class_names"]) == 2
    assert products_of(rows[0], coarse=1, classes=("b",)).label(0) == 0


def test_incomplete_products_can_be_left_out(official):
    row = OFFICIAL["13"]
    assert len(make_source(official | {"complete": True, "audio": (), "video": ()})) == 1
    source = make_source(official | {"complete": False})
    assert source.table(2) == [("colour", row["pv"].split("#:#")[1])]
    with pytest.raises(UserError, match="No product has all of title, regions, table, "):
        make_source(official | {"complete": True})


@pytest.mark.parametrize("row, sentence", [
    ({"id": "1"}, "has no modality at all: no title, no value"),
    ({"id": "1", "table": [["colour", ""]]}, "has no modality at all"),
    ({"title": "a"}, 'must have an "id", or an "image" to be named after'),
    ({"id": "1", "title": 3}, 'must have a text as "title", but has 3'),
    ({"id": "1", "table": 3}, 'has a "table" that is a int'),
    ({"id": "1", "title": "a", "label": [3]}, 'has a "category" that is neither a text nor a list'),
    ([1], "must be an object such as"),
    ({"id": "1", "title": "a", "label": "x"}, "has the class 'x', which is not one of the 1 of"),
])
def test_wrong_rows_are_named(products_of, row, sentence):
    with pytest.raises(UserError, match=r"Row 1 \(counted from 0\) of .*rows.json") as error:
        products_of({"id": "0", "title": "a", "label": "y"}, row, classes=("y",))
    assert sentence in str(error.value)


@pytest.mark.parametrize("options, sentence", [
    (dict(video="nowhere"), "The folder of features nowhere does not exist; give one with files "
                            "NAME.npy"),
    (dict(regions="nowhere.tsv"), "The region file nowhere.tsv cannot be read (No such file"),
    (dict(classes="nowhere.json"), "The classes nowhere.json cannot be used: The manifest"),
])
def test_files_that_are_not_there(products_of, options, sentence):
    with pytest.raises(UserError) as error:
        products_of({"id": "0", "title": "a", "label": "y"}, **options)
    assert sentence in str(error.value)


def test_media_without_features_are_an_error_with_the_way_out(products_of):
    with pytest.raises(UserError, match="1 products of .* name a file for 'video', but data.source "
                                        "has no features of it; make them with `albef features"):
        products_of({"id": "0", "title": "a", "video": "a.mp4"})


def test_a_file_that_is_no_tsv(tmp_path):
    (tmp_path / "x.tsv").write_text("a,b,c\n")
    with pytest.raises(UserError, match="is no TSV with the columns image_id, image_w"):
        RegionsTsv(str(tmp_path / "x.tsv"))


def test_damaged_lines_and_files_are_told(official, tmp_path):
    good = tsv_line("11", *REGIONS["11"])
    broken = {"cut": good[:-3], "count": good.replace("\t3\t", "\t2\t"), "letters": good + "?",
              "nan": tsv_line("11", np.full((3, 4), np.nan, np.float32), REGIONS["11"][1])}
    for what, line in broken.items():
        (tmp_path / "regions.tsv").write_text(line)
        with pytest.raises(OSError, match="damaged line|not finite") as error:
            make_source(official).regions(0)
        assert ("finite" in str(error.value)) == (what == "nan")
    (tmp_path / "video" / "11.npy").write_bytes(b"\x93NUMPY...")
    with pytest.raises(OSError, match="no file of features"):
        make_source(official).video(0)


def test_the_index_of_a_large_tsv_is_kept_and_made_anew_if_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("albef_jax.data.sources.region_files.CACHED_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "r.tsv"
    path.write_text("\n".join(tsv_line(name, *both) for name, both in REGIONS.items()))
    for _ in range(2):
        file = RegionsTsv(str(path))
        assert file.names() == list(REGIONS) and "12" in file and "13" not in file
        np.testing.assert_array_equal(file.read("14").features, REGIONS["14"][0])
    kept, = (tmp_path / "cache" / "albef_jax" / "regions").glob("*.npz")
    kept.write_bytes(b"PK")
    assert RegionsTsv(str(path)).read("11").features.shape == (3, 4)
    assert "is damaged; it is made anew" in capsys.readouterr().err


def make_products_pipeline(source, data_config, batch_size):
    data_config.update(table_length=8, regions_length=3, regions_width=4, video_length=4,
                       video_width=6, audio_length=3, audio_width=7, audio_axis="mel", audio_pool=1)
    words = default_config().model
    fields = {"title": TitleField(data_config, words), "table": TableField(data_config, words),
              "regions": RegionsField(data_config), "video": VideoField(data_config),
              "audio": AudioField(data_config), "label": LabelField(2)}
    open_fields(fields, source, make_tokenizer(data_config, source))
    return TrainPipeline(source, fields, data_config, batch_size, seed=0)


def test_batches_of_products_say_what_is_present(official, data_config):
    source = make_source(official)
    pipeline = make_products_pipeline(source, data_config, 3)
    batch, order = pipeline.batch(0), pipeline.examples(0)[0]
    for name in ("title", "regions", "table", "video", "audio"):
        assert batch[f"{name}_present"].tolist() == [name in source.modalities(i) for i in order]


def test_a_broken_file_is_counted_and_replaced(official, data_config, tmp_path):
    np.save(tmp_path / "video" / "13.npy", np.full((5, 6), np.nan))
    data_config.max_bad_share = 0.5
    pipeline = make_products_pipeline(make_source(official), data_config, 3)
    assert pipeline.batch(0)["label"].shape == (3,)
    assert pipeline.broken.names == {"13": "features that are not finite"}


def test_data_check_counts_what_products_have(official, capsys, tmp_path):
    np.save(tmp_path / "video" / "13.npy", np.full((5, 6), np.nan))
    source = ProductSource(**{key: value for key, value in official.items() if key != "kind"})
    assert len(source) == 3
    look.print_modalities(source)
    printed = capsys.readouterr().out
    assert "title: 3 of 3 have it" in printed and "audio: 1 of 3 have it" in printed
    assert "1 with title + regions + table + video\n" in printed


def test_the_command_counts_too(official, capsys):
    problems = check([f"products:{official['files']}"])
    printed = capsys.readouterr().out
    assert problems == [] and "table: 2 of 3 have it" in printed
    assert "table: 4, 1 to 2 per row, 3 different" in printed
