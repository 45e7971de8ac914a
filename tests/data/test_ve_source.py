"""Entailment manifests: what rows become, and the sentence for every mistake."""

import json

import pytest

from albef_jax.data.sources import make_source
from albef_jax.data.sources.base import pairs
from albef_jax.errors import UserError

ROW = {"image": "a", "sentence": "A man sleeps.", "label": "neutral"}


@pytest.fixture
def source_of(tmp_path):
    def make(*rows):
        (tmp_path / "ve.json").write_text(json.dumps(rows))
        return make_source(f"ve:{tmp_path / 've.json'}")

    return make


def test_rows(source_of, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"AAA")
    source = source_of(ROW, {**ROW, "image": "b.png", "label": "entailment"},
                       {**ROW, "label": "contradiction", "premise": "unused"})
    names = source.fields["label"]["class_names"]
    assert source.fields == pairs() | {"label": {"class_names": names}} and len(source) == 3
    assert [names[source.get(i, "label")] for i in range(3)] == [
        "neutral", "entailment", "contradiction"]
    assert [source.get(i, "label") for i in range(3)] == [1, 2, 0]
    assert source.get(0, "text") == ["A man sleeps."]
    assert [source.name(i) for i in range(3)] == ["a.jpg", "b.png", "a.jpg"]
    assert [source.image_id(i) for i in range(3)] == [0, 1, 0]
    assert source.image(0) == b"AAA"
    with pytest.raises(FileNotFoundError):
        source.image(1)
    assert source.fingerprint != source_of(ROW).fingerprint


@pytest.mark.parametrize("row, sentence", [
    ({**ROW, "label": "maybe"}, "has the label 'maybe'; use one of contradiction, neutral, ent"),
    ({**ROW, "label": 2}, 'must be an object whose "label" is a text'),
    ({"image": "a", "label": "neutral"}, 'must be an object whose "sentence" is a text'),
    ([], 'must be an object whose "image" is a text'),
])
def test_wrong_rows_are_named(source_of, row, sentence):
    with pytest.raises(UserError, match=rf"Row 1 \(counted from 0\) of .*ve.json {sentence}"):
        source_of(ROW, row)
