"""`albef score`: what the rows say, that it goes on, and what it says of models and data."""

import json

import numpy as np
import pytest

import albef_jax
from albef_jax.config import load_config
from albef_jax.data.sources import make_source, source_block
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.inference.commands import fingerprint


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_those_of_the_api_and_a_manifest(albef, workdir, scenes, model, tmp_path):
    out = tmp_path / "scored.jsonl"
    code, said, _ = albef("score", workdir, scenes / "pairs.json", "--out", out,
                          "--batch-size", 5)
    assert code == 0 and f"32 pairs in {out}" in said
    rows = rows_of(out)
    source = make_source(dict(kind="json", files=str(out), image_roots=str(scenes),
                              merge_images=True))
    assert len(source) == 16 and len(rows) == 32
    images = [scenes / row["image"] for row in rows]
    texts = [row["caption"] for row in rows]
    similarity = np.sum(model.encode_image(images) * model.encode_text(texts), axis=1)
    np.testing.assert_allclose([row["itc"] for row in rows], similarity, atol=3e-6)
    np.testing.assert_allclose([row["itm"] for row in rows], model.match(images, texts), atol=3e-6)


def test_it_goes_on_where_it_stopped(albef, workdir, scenes, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    arguments = ("score", workdir, scenes / "pairs.json", "--batch-size", 4, "--out")
    albef(*arguments, whole)
    rows = whole.read_bytes().splitlines(keepends=True)
    # It was killed inside the second row of the fifth image.
    albef(*arguments, out)
    unfinished = tmp_path / "out.jsonl.part"
    assert not unfinished.exists()
    head = {"model": fingerprint(albef_jax.load(workdir).params), "data": make_source(
        source_block(str(scenes / "pairs.json"), merge_images=True)).fingerprint}
    for changed, code_wanted in (({}, 0), ({"model": "other"}, 2)):
        changed_head = json.dumps({**head, **changed}).encode() + b"\n"
        unfinished.write_bytes(changed_head + b"".join(rows[:9]) + rows[9][:20])
        code, _, err = albef(*arguments, out)
        assert code == code_wanted, err
        if code == 0:
            assert "4 of 16 images are there and stay" in err
            assert out.read_bytes() == whole.read_bytes()
        else:
            assert "holds scores by another model or of other data; delete it" in err


def test_broken_images_have_no_scores(albef, workdir, scenes, tmp_path):
    rows = json.loads((scenes / "pairs.json").read_text())[:4]
    rows[1]["image"] = "gone.png"
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    out = tmp_path / "out.jsonl"
    code, said, _ = albef("score", workdir, tmp_path / "pairs.json", "--image-root", scenes,
                          "--out", out)
    assert code == 0 and "1 images cannot be read" in said and "gone.png (missing)" in said
    assert ["itm" in row for row in rows_of(out)] == [row["image"] != "gone.png"
                                                      for row in rows_of(out)]


@pytest.fixture(scope="module")
def shelves(saved, tmp_path_factory):
    """A work directory of a tiny ImageBERT of fresh weights, and its data."""
    config = load_config("tests/tiny_imagebert.py")
    source = make_source(config.data.source)
    tokenizer = train_tokenizer([text for i in range(len(source)) for text in source.text(i)], 100)
    config = config.unlock()
    config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                        cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
                        mask_id=tokenizer.mask_id)
    folder = tmp_path_factory.mktemp("shelves")
    tokenizer.save(str(folder / "tokenizer"))
    return saved(config.lock(), folder), source


def test_a_model_of_regions_says_what_matches(shelves, albef, tmp_path):
    workdir, source = shelves
    model = albef_jax.load(workdir, batch_size=4)
    regions, texts = [source.regions(i) for i in range(3)], [source.text(i)[0] for i in range(3)]
    pairs = model.match(regions, texts)
    every = model.match(regions, texts, all_pairs=True)
    assert pairs.shape == (3,) and every.shape == (3, 3)
    np.testing.assert_allclose(np.diagonal(every), pairs, atol=1e-6)
    np.testing.assert_allclose(model.match(regions[1], texts), every[1], atol=1e-6)
    logits = model.predict("match", regions=regions, text=texts)
    np.testing.assert_allclose(pairs, 1 / (1 + np.exp(-logits)), atol=1e-6)
    with pytest.raises(UserError, match="regions of 2 images and 3 texts"):
        model.match(regions[:2], texts)
    # From files: the captions of the first shelf, and its regions.
    np.savez(tmp_path / "0.npz", **{name: value for name, value in regions[0]._asdict().items()})
    (tmp_path / "pairs.json").write_text(json.dumps([{"image": "0.jpg", "caption": texts},
                                                     {"image": "1.jpg", "caption": texts[0]}]))
    code, said, err = albef("score", workdir, tmp_path / "pairs.json", "--regions", tmp_path,
                            "--out", tmp_path / "out.jsonl")
    assert code == 0 and "1.jpg (missing)" in said, err
    rows = rows_of(tmp_path / "out.jsonl")
    np.testing.assert_allclose([row["itm"] for row in rows[:3]], every[0], atol=2e-6)
    assert "itm" not in rows[3] and "itc" not in rows[0]
    code, _, err = albef("score", workdir, tmp_path / "pairs.json", "--out", tmp_path / "out.jsonl")
    assert code == 2 and "The model compares regions and text, but the data has image" in err


def test_a_model_that_scores_no_pairs(albef, config_of, saved, scenes, tmp_path):
    (tmp_path / "vqa").mkdir()
    run = saved(config_of("vqa"), tmp_path / "vqa")
    code, _, err = albef("score", run, scenes / "pairs.json", "--out", tmp_path / "x.jsonl")
    assert code == 2 and "task 'vqa' scores no pairs" in err
