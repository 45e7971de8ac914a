"""Captions as answers to one question."""

import json

import pytest

from albef_jax.data.sources import make_source
from albef_jax.errors import UserError


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"AAA")
    rows = [{"image": "a.jpg", "caption": ["A dog, running.", "Two-legged?"]},
            {"image": "b.jpg", "caption": "A cat"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return f"json:{tmp_path / 'rows.json'}"


def test_an_example_is_a_caption_as_pre_training_reads_it(rows):
    source = make_source(dict(kind="captions", source=rows, question="what is this ?"))
    assert [source.get(i, "answers") for i in range(len(source))] == [
        [("a dog running", 1.0)], [("two legged", 1.0)], [("a cat", 1.0)]]
    assert source.get(2, "text") == ["what is this ?"]
    assert source.image_ids().tolist() == [0, 0, 1]
    assert source.get(1, "image") == b"AAA" and source.name(2) == "b.jpg"
    assert list(source.words()) == ["what is this ?", "A dog, running.", "Two-legged?", "A cat"]
    assert source.fingerprint != make_source(dict(kind="captions", source=rows)).fingerprint


def test_a_source_that_knows_its_pictures_judges_texts(tmp_path):
    scenes = dict(kind="scenes", split="heldout", size=6, data_dir=str(tmp_path))
    inner, source = make_source(scenes), make_source(dict(kind="captions", source=scenes))
    assert len(source) == 30
    for index in range(30):
        assert source.truth(index, source.get(index, "answers")[0][0]) is True
        assert source.truth(index, "six shapes") is source.truth(index, "a dog") is None
        own = {item["shape"] for item in inner.graph(index // 5)["objects"]}
        assert source.truth(index, "there is a star") is ("star" in own)


def test_others_do_not(rows):
    source = make_source(dict(kind="captions", source=rows))
    with pytest.raises(NotImplementedError, match="JsonSource does not know what its images show"):
        source.truth(0, "a dog")


def test_a_wrong_source_is_named():
    with pytest.raises(UserError, match="The source of captions is 3; give it a block"):
        make_source(dict(kind="captions", source=3))
