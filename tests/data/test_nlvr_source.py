"""Manifests of texts about two images: rows, parts of one picture, and every mistake."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from albef_jax.config import default_config
from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.sources import make_source
from albef_jax.data.sources.base import pairs
from albef_jax.errors import UserError
from albef_jax.preflight.check import check

ROW = {"images": ["a.png", "b.png"], "sentence": "Both are red.", "label": "True"}
CROPS = ((0, 0, 30, 20), (20, 5, 50, 15))


@pytest.fixture
def source_of(tmp_path):
    def make(*rows, **options):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return make_source(dict(kind="nlvr", files=(str(tmp_path / "rows.json"),), **options))

    return make


@pytest.fixture
def read_all(data_config, make_fields):
    """Reads every example of a source as an evaluation does."""
    def read(source):
        fields = {"image": make_fields(views=2)["image"]}
        return list(EvalRows(source, fields, None, data_config).batches(1))

    return read


def test_pairs(source_of, tmp_path):
    (tmp_path / "a.png").write_bytes(b"AAA")
    (tmp_path / "b.png").write_bytes(b"BBB")
    turned = {**ROW, "images": ["b.png", "a.png"], "label": False}
    source = source_of(ROW, turned, {**ROW, "identifier": "dev-1", "label": "False"})
    assert source.fields == pairs(views=2) | {
        "label": {"class_names": ("false", "true")}, "group": {}}
    assert [source.get(i, "label") for i in range(3)] == [1, 0, 0]
    assert source.image(1) == [b"BBB", b"AAA"] and source.name(1) == "b.png, a.png"
    assert [source.image_id(i) for i in range(3)] == [0, 1, 0]
    assert source.get(0, "text") == ["Both are red."]
    assert source.get(0, "group") == source.get(1, "group")


def test_data_check_looks_at_every_image_once(source_of, tmp_path, capsys):
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (20, 20), (shade,) * 3).save(tmp_path / name)
    source_of(ROW, {**ROW, "images": ["b.png", "a.png"]}, {**ROW, "images": ["a.png", "c.png"]})
    config = default_config("nlvr")
    config.data.source = dict(kind="nlvr", files=(str(tmp_path / "rows.json"),))
    (problem,) = check((), config=config)
    assert "data.source: 3 rows, 3 images, 3 captions" in (printed := capsys.readouterr().out)
    assert "missing images: 1 (c.png)" in printed and "again under another name" not in printed
    assert "label: 3, 1 different: false (0), true (3)" in printed
    assert "3 examples, fewer than one batch" in problem


def test_parts_of_one_picture(source_of, tmp_path, read_all):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"image": "a.png", "sentence": "There is a box.", "label": "False"}
    source = source_of(row, crops=CROPS)
    one, other = source.image(0)
    np.testing.assert_array_equal(one, pixels[0:20, 0:30])
    np.testing.assert_array_equal(other, pixels[5:15, 20:50])
    assert source.fingerprint != source_of(row, crops=CROPS[::-1]).fingerprint

    wide = source_of(row, crops=(CROPS[0], (20, 5, 51, 15)))
    with pytest.raises(UserError, match=r"a.png cannot be read \(\(20, 5, 51, 15\) is not inside "
                                        "its 50 x 20 pixels"):
        read_all(wide)


def test_the_broken_one_of_two_images_is_named(source_of, tmp_path, read_all):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    source = source_of(ROW)
    with pytest.raises(UserError, match=r"example a.png, b.png cannot be read \(b.png: missing\)"):
        read_all(source)
    (tmp_path / "b.png").write_text("a page")
    with pytest.raises(UserError, match=r"a.png, b.png cannot be read \(image 2: not an image\)"):
        read_all(source)


@pytest.mark.parametrize("damage", [slice(0, 60), slice(41, None), slice(0, 0)])
def test_damaged_picture_of_parts(source_of, tmp_path, read_all, damage):
    """Whatever the decoder makes of it, it is the example that is broken, not the program."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[damage])
    source = source_of({"image": "a.png", "sentence": "x", "label": "True"}, crops=CROPS)
    with pytest.raises(UserError, match="evaluation example a.png cannot be read"):
        read_all(source)


def test_palettes_become_colours(source_of, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 20), (200, 30, 10)).quantize(4).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    source = source_of({"image": "a.png", "sentence": "x", "label": "True"}, crops=CROPS)
    assert [part[0, 0].tolist() for part in source.image(0)] == [[200, 30, 10]] * 2


@pytest.mark.parametrize("row, sentence", [
    ({**ROW, "label": "true"}, "has the label 'true'; use \"True\" or \"False\""),
    ({**ROW, "label": 1}, 'must be an object whose "label" is a text or true or false'),
    ({**ROW, "images": ["a.png"]}, "must have the names of two images"),
    ({**ROW, "images": ["a.png", 3]}, "must have the names of two images"),
    ({"image": "a.png", "sentence": "x", "label": "True"}, 'has one "image"; give .* crops'),
    ({"sentence": "x", "label": "True"}, 'must be an object whose "images" is a list'),
    ("row", 'must be an object whose "sentence" is a text'),
])
def test_wrong_rows_are_named(source_of, row, sentence):
    with pytest.raises(UserError, match=rf"Row 1 \(counted from 0\) of .*rows.json {sentence}"):
        source_of(ROW, row)


@pytest.mark.parametrize("crops", [CROPS[:1], ((0, 0, 30), CROPS[1]), ((30, 0, 0, 20), CROPS[1])])
def test_wrong_crops(source_of, crops):
    with pytest.raises(UserError, match="crops is .*; give two rectangles"):
        source_of(crops=crops)


def test_pairs_need_no_crops(source_of):
    with pytest.raises(UserError, match='Row 0 .* whose "image" is a text'):
        source_of(ROW, crops=CROPS)
