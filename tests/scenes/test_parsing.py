"""What captions claim, read back from their texts."""

import pytest

from albef_jax.data.text import clean_caption
from albef_jax.scenes.captions import is_true, make_captions
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.levels import LEVELS
from albef_jax.scenes.parsing import parse


@pytest.mark.parametrize("level", LEVELS.values(), ids=[*LEVELS])
def test_every_caption_claims_what_it_was_made_of_with_commas_and_without(level):
    graphs = [sample_graph(level, "train", i) for i in range(60)]
    for number, graph in enumerate(graphs):
        for text, form in make_captions(graph, level, scene_rng(0, "train", number, 50), 5):
            parsed = parse(text)
            assert parsed == parse(clean_caption(text, 99)), text
            assert is_true(parsed, graph), text
            assert parsed.get("total") == form.get("total")
            assert parsed.get("background") == form.get("background")
            assert len(parsed["mentions"]) == len(form["mentions"])
            for other in graphs[:20]:
                assert is_true(parsed, other) == is_true(form, other), text


def test_a_form():
    assert parse("a big red star with stripes is to the left of two rings on a shaded background"
                 ) == {
        "mentions": [{"count": 1, "size": "large", "texture": "striped", "colour": "red",
                      "shape": "star"}, {"count": 2, "shape": "ring"}],
        "relations": [[0, "left of", 1]], "background": "shaded"}
    assert parse("three shapes: a red shape, a cross and another cross") == {
        "mentions": [{"count": 1, "colour": "red"}, {"count": 1, "shape": "cross"},
                     {"count": 1, "shape": "cross"}], "relations": [], "total": 3}
    assert parse("a star is above a ring and below a cross, and over a moon is a drop"
                 )["relations"] == [[0, "above", 1], [0, "below", 2], [4, "above", 3]]


@pytest.mark.parametrize("text", [
    "", "red star", "a red star is above", "a star left of a red", "there is no star",
    "a star a star is", "a star is above a ring above a cross", "star a red", "a dog",
    "a red blue star", "and a star", "a star and", "three shapes"])
def test_nonsense_claims_nothing(text):
    assert parse(text) is None
