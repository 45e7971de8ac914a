"""`albef data shard`: the same pairs in the same order, broken ones left out, and going on."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from albef_jax.cli import main
from albef_jax.data import shard as shards
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError


@pytest.fixture
def source(tmp_path, photo_jpeg, monkeypatch):
    """23 pairs of 12 images, in shards of 5."""
    monkeypatch.setattr(shards, "ROWS", 5)
    for number in range(12):
        (tmp_path / f"{number}.jpg").write_bytes(photo_jpeg(40 + 5 * number, 60, number))
    rows = [{"image": f"{i % 12}.jpg", "caption": [f"text {i}", "ü"][: 1 + i % 2]}
            for i in range(23)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return make_source(f"json:{tmp_path / 'rows.json'}")


def pairs(source, keep=lambda index: True):
    return [(source.text(i), source.image_id(i)) for i in range(len(source)) if keep(i)]


def test_same_pairs_in_the_same_order(source, tmp_path, data_config, make_pipeline):
    said = shards.shard(source, str(tmp_path / "out"), short_side=48)
    assert said == f"23 pairs in 5 shards, to be read as tfds:{tmp_path / 'out'}"
    sharded = make_source(f"tfds:{tmp_path / 'out'}")
    assert pairs(sharded) == pairs(source) and len(sharded) == 23
    np.testing.assert_array_equal(sharded.image_ids(), source.image_ids())
    tokenizer = make_tokenizer(data_config, source)
    one, two = (make_pipeline(s, 4, seed=3, tokenizer=tokenizer) for s in (source, sharded))
    for step in (0, 7):
        batch, same = one.batch(step), two.batch(step)
        for name in ("text_ids", "text_mask", "image_id"):
            np.testing.assert_array_equal(batch[name], same[name])
        assert np.abs(batch["image"].astype(int) - same["image"]).mean() < 8  # other pixels
    assert not [p for p in (tmp_path / "out").iterdir() if "unfinished" in p.name]


def test_small_images_stay_and_large_ones_shrink(source, tmp_path):
    shards.shard(source, str(tmp_path / "out"), short_side=48)
    sharded = make_source(f"tfds:{tmp_path / 'out'}:train")
    assert sharded.image(0) == source.image(0)  # 40 x 60
    for index in range(12):
        before, after = (Image.open(io.BytesIO(s.image(index))) for s in (source, sharded))
        assert min(after.size) == min(48, *before.size)
        assert after.width / after.height == pytest.approx(before.width / before.height, rel=.03)


def test_broken_images_are_left_out_and_listed(source, tmp_path, broken_files):
    (tmp_path / "3.jpg").write_bytes(broken_files["cut.jpg"])
    (tmp_path / "7.jpg").unlink()
    said = shards.shard(source, str(tmp_path / "out"))
    assert "19 pairs" in said and "4 left out" in said and "7.jpg (missing)" in said
    listed = json.loads((tmp_path / "out" / "broken.json").read_text())
    assert [name for name, _ in listed] == ["3.jpg", "7.jpg", "3.jpg", "7.jpg"]
    sharded = make_source(f"tfds:{tmp_path / 'out'}")
    assert pairs(sharded) == pairs(source, lambda index: index % 12 not in (3, 7))


def test_goes_on_after_the_last_complete_shard(source, tmp_path, monkeypatch):
    whole = shards.shard(source, str(tmp_path / "whole"))
    out, write, calls = tmp_path / "out", shards.write_records, []

    def fails_at_the_third(path, records):
        calls.append(os.path.basename(path))
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(path, records)

    monkeypatch.setattr(shards, "write_records", fails_at_the_third)
    with pytest.raises(UserError, match="No space left on device.*the same command goes on"):
        shards.shard(source, str(out))
    with pytest.raises(UserError, match="out is unfinished; the same"):
        make_source(f"tfds:{out}")
    with pytest.raises(UserError, match="unfinished shards of another source or short side"):
        shards.shard(source, str(out), short_side=20)
    assert shards.shard(source, str(out)) == whole.replace("whole", "out")
    assert calls[2:] == [calls[2], *calls[3:]] and len(calls) == 6
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(UserError, match="holds a complete data set"):
        shards.shard(source, str(out))


def test_command_and_mistakes(source, tmp_path, capsys):
    arguments = ["data", "shard", str(tmp_path / "rows.json"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--short-side", "32"]) == 0
    assert "23 pairs in 5 shards" in capsys.readouterr().out
    assert main(arguments) == 2


@pytest.mark.parametrize("kind, row, unlike", [
    ("ve", {"image": "1.jpg", "sentence": "x", "label": "neutral"}, "label"),
    ("nlvr", {"images": ["1.jpg", "2.jpg"], "sentence": "x", "label": "True"},
     "image, label, group"),
    ("vqa", {"image": "1.jpg", "question": "x"}, "text, question_id"),
])
def test_only_image_text_pairs(tmp_path, kind, row, unlike):
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=f"^Only image-text pairs.* unlike them in {unlike}.$"):
        shards.shard(make_source(f"{kind}:{tmp_path / 'rows.json'}"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_regions_come_along(tmp_path, photo_jpeg, capsys):
    """Of files of any form, and whether the images are there; without regions a pair is left out.
    """
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "0.jpg").write_bytes(photo_jpeg(40, 50))
    for number in range(4):
        rows.append({"image": f"{number}.jpg", "caption": f"text {number}"})
        if number != 2:
            np.savez(tmp_path / f"{number}.npz", boxes=rng.random((3, 4)), size=(50, 40),
                     features=rng.normal(size=(3, 6)), classes=np.arange(3))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = make_source(dict(kind="regions", files=str(tmp_path / "rows.json"),
                              regions=str(tmp_path)))
    assert main(["data", "shard", str(tmp_path / "rows.json"), "--regions", str(tmp_path), "--out",
                 str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "3 pairs" in said and "1 left out" in said and "2.jpg (missing)" in said
    sharded = make_source(f"tfds:{tmp_path / 'out'}")
    assert sharded.fields == source.fields and sharded.text(2) == ["text 3"]
    for index, before in enumerate((0, 1, 3)):
        one, two = source.regions(before), sharded.regions(index)
        for name in ("features", "boxes", "classes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.size == two.size and two.confidences is None
    assert Image.open(io.BytesIO(sharded.image(0))).size == (50, 40)
    assert Image.open(io.BytesIO(sharded.image(1))).size == (16, 16)
