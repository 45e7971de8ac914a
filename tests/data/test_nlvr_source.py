"""Manifests of texts about two images: rows, parts of one picture, and every mistake."""

import io
import json

import numpy as np
from PIL import Image
import pytest

from albef_jax.config import default_config
from albef_jax.preflight.check import check
from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.sources import make_source
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError

ROW = {"images": ["a.png", "b.png"], "sentence": "Both are red.", "label": "True"}
CROPS = ((0, 0, 30, 20), (20, 5, 50, 15))


@pytest.fixture
def source_of(tmp_path):
    def make(*rows, **options):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return make_source(dict(kind="nlvr", files=(str(tmp_path / "rows.json"),), **options))

    return make


def test_pairs(source_of, tmp_path):
    (tmp_path / "a.png").write_bytes(b"AAA")
    (tmp_path / "b.png").write_bytes(b"BBB")
    turned = {**ROW, "images": ["b.png", "a.png"], "label": False}
    source = source_of(ROW, turned, {**ROW, "identifier": "dev-1", "label": "False"})
    assert source.fields == ("label",) and source.views == 2
    assert source.class_names == ("false", "true")
    assert [source.label(i) for i in range(3)] == [1, 0, 0]
    assert [source.view(1, number) for number in range(2)] == [b"BBB", b"AAA"]
    assert source.image(0) == b"AAA" and source.name(1) == "b.png, a.png"
    assert source.view_name(1, 0) == "b.png"
    assert [source.image_id(i) for i in range(3)] == [0, 1, 0]
    assert source.captions(0) == ["Both are red."] and source.group(0) == source.group(1)


def test_data_check_looks_at_every_image_once(source_of, tmp_path, capsys):
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.new("RGB", (20, 20), (shade,) * 3).save(tmp_path / name)
    source_of(ROW, {**ROW, "images": ["b.png", "a.png"]}, {**ROW, "images": ["a.png", "c.png"]})
    config = default_config()
    config.data.source = dict(kind="nlvr", files=(str(tmp_path / "rows.json"),))
    problems = check((), config=config)
    assert "data.source: 3 rows, 3 images, 3 captions" in (printed := capsys.readouterr().out)
    assert "missing images: 1 (c.png)" in printed and "again under another name" not in printed
    assert any("learns from the field" in p or "image(s) per text" in p for p in problems)


def test_parts_of_one_picture(source_of, tmp_path, data_config):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = {"image": "a.png", "sentence": "There is a box.", "label": "False"}
    source = source_of(row, crops=CROPS)
    np.testing.assert_array_equal(source.view(0, 0), pixels[0:20, 0:30])
    np.testing.assert_array_equal(source.view(0, 1), pixels[5:15, 20:50])
    assert source.fingerprint != source_of(row, crops=CROPS[::-1]).fingerprint

    wide = source_of(row, crops=(CROPS[0], (20, 5, 51, 15)))
    assert wide.view(0, 0).shape == (20, 30, 3)
    rows = EvalRows(wide, train_tokenizer(["there is a box"] * 5, 60), data_config)
    with pytest.raises(UserError, match=r"a.png \(image 1\) cannot be read \(\(20, 5, 51, 15\) "
                                        "is not inside its 50 x 20 pixels"):
        next(rows.batches(1))


def test_palettes_become_colours(source_of, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 20), (200, 30, 10)).quantize(4).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    source = source_of({"image": "a.png", "sentence": "x", "label": "True"}, crops=CROPS)
    assert source.view(0, 1)[0, 0].tolist() == [200, 30, 10]


@pytest.mark.parametrize("row, sentence", [
    ({**ROW, "label": "true"}, "has the label 'true'; use \"True\" or \"False\""),
    ({**ROW, "label": 1}, 'must be an object whose "label" is usable'),
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
