"""Scenes: what is drawn, what is said of it, and that both agree."""

import hashlib
import json

import numpy as np
import pytest

from albef_jax.errors import UserError
from albef_jax.scenes import __main__ as command
from albef_jax.scenes.captions import is_true, matches, noun_phrase, say
from albef_jax.scenes.generate import VERSION, generate, make_scene
from albef_jax.scenes.graph import GAP, place_name, sample_graph
from albef_jax.scenes.levels import COLOURS, LEVELS, get_level
from albef_jax.scenes.render import background, render
from albef_jax.scenes.shapes import DISTANCES, EXTENTS
from albef_jax.scenes.survey import oracle

# Of captions and graphs; whoever changes what a seed gives raises VERSION and enters the new ones.
CONTENT = {(1, "demo"): "d84e800a252de07b", (1, "full"): "023c696b9d080c91"}
both_levels = pytest.mark.parametrize("level", LEVELS)


@pytest.fixture(scope="module")
def heldout():
    """512 held-out scenes of the demo level."""
    return list(generate("demo", "heldout", 0, 512))


def parsed(scenes):
    """(graph, form, text) of every caption."""
    for scene in scenes:
        graph = json.loads(scene["graph"])
        for text, form in zip(scene["captions"], json.loads(scene["forms"])):
            yield graph, form, text


def item(colour="red", shape="star", size="large", texture="plain", centre=(16, 16)):
    return {"colour": colour, "shape": shape, "size": size, "texture": texture,
            "place": place_name(centre[0] / 64, centre[1] / 64), "centre": list(centre)}


# A red star upper left, a blue ring upper right, a striped red star lower right.
GRAPH = {"side": 64, "background": {"kind": "shaded"}, "objects": [
    item(), item("blue", "ring", centre=(48, 18)), item(texture="striped", centre=(50, 50))]}


@pytest.mark.parametrize("mentions, relations, more, expected", [
    ([{"count": 1, "colour": "red", "shape": "star"}], [], {}, True),
    ([{"count": 1, "colour": "blue", "shape": "star"}], [], {}, False),
    ([{"count": 2, "colour": "red", "shape": "star"}], [], {}, True),
    ([{"count": 2, "texture": "plain"}], [], {}, True),
    ([{"count": 2, "size": "large"}], [], {}, False),  # there are three
    ([{"count": 1, "texture": "striped"}, {"count": 1, "texture": "striped"}], [], {}, False),
    ([{"count": 1, "shape": "star"}, {"count": 1, "shape": "star"}], [], {}, True),
    ([{"count": 1, "shape": "star"}, {"count": 1, "shape": "ring"}], [[0, "left of", 1]], {}, True),
    ([{"count": 1, "shape": "ring"}, {"count": 1, "shape": "star"}], [[0, "left of", 1]], {},
     False),
    ([{"count": 1, "shape": "ring"}, {"count": 1, "shape": "star"}], [[0, "above", 1]], {}, True),
    ([{"count": 2, "shape": "star"}, {"count": 1, "shape": "ring"}], [[0, "below", 1]], {}, False),
    ([{"count": 1, "texture": "striped"}, {"count": 1, "shape": "ring"}], [[0, "right of", 1]], {},
     False),  # by two pixels: not clearly so
    ([{"count": 1, "shape": "star", "place": "bottom right"}], [], {}, True),
    ([{"count": 1, "shape": "ring", "place": "bottom right"}], [], {}, False),
    ([{"count": 1, "shape": "star"}], [], {"total": 3, "background": "shaded"}, True),
    ([{"count": 1, "shape": "star"}], [], {"total": 2}, False),
    ([{"count": 1, "shape": "star"}], [], {"background": "plain"}, False),
])
def test_truth(mentions, relations, more, expected):
    assert is_true({"mentions": mentions, "relations": relations} | more, GRAPH) is expected


@both_levels
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_are_true_different_and_short(level, split):
    for scene in generate(level, split, 3, 150):
        assert len(set(scene["captions"])) == 5
    for graph, form, text in parsed(generate(level, split, 3, 150)):
        assert is_true(form, graph), (text, graph)
        assert len(text.split()) <= get_level(level).max_words
        assert text == text.lower()


def test_captions_vary(heldout):
    forms = [form for _, form, _ in parsed(heldout)]
    texts = [text for _, _, text in parsed(heldout)]
    assert 0.5 < np.mean([bool(form["relations"]) for form in forms]) < 0.7
    assert np.mean([any(m["count"] > 1 for m in form["mentions"]) for form in forms]) > 0.02
    two = [sum("colour" in m and "shape" in m for m in form["mentions"]) >= 2 for form in forms]
    assert np.mean(two) > 0.8
    assert len({text.split()[0] for text in texts}) > 12
    for word in ("left", "right", "above", "over", "below", "under", "two", "stars", "with"):
        assert sum(word in text.split() for text in texts) > 5, word


def test_a_caption_is_false_when_its_object_gets_another_colour(heldout):
    changed = 0
    for graph, form, text in parsed(heldout[:300]):
        for mention in form["mentions"]:
            found = [i for i, thing in enumerate(graph["objects"]) if matches(mention, thing)]
            if "colour" in mention and len(found) == 1:
                absent = set(COLOURS) - {thing["colour"] for thing in graph["objects"]}
                objects = list(graph["objects"])
                objects[found[0]] = objects[found[0]] | {"colour": min(absent)}
                assert not is_true(form, graph | {"objects": objects}), (text, mention)
                changed += 1
    assert changed > 1500


def test_a_caption_is_false_in_the_mirror(heldout):
    """Unless its words fit several objects, "left of" is false of the mirrored image."""
    sides = {"left of", "right of"}
    still_true = [
        is_true(form, graph | {"objects": [
            thing | {"centre": [64 - thing["centre"][0], thing["centre"][1]]}
            for thing in graph["objects"]]})
        for graph, form, _ in parsed(heldout) if sides & {r for _, r, _ in form["relations"]}
    ]
    assert len(still_true) > 500 and np.mean(still_true) < 0.05


def test_captions_single_out_their_scene(heldout):
    true_of = oracle(heldout)
    assert len(true_of) == 5 * 512 and true_of.min() == 1
    assert 0.9 < (true_of == 1).mean() < 0.97


@both_levels
def test_held_out_kinds_are_new_but_their_parts_are_not(level):
    limits = get_level(level)
    new = set(limits.held_out_kinds)
    assert len(new) == pytest.approx(0.2 * len(limits.kinds), rel=0.02)
    pairs = {kind[:2] for kind in limits.kinds}
    assert {kind[:2] for kind in limits.train_kinds} == pairs
    seen = [(thing["colour"], thing["shape"], thing["texture"]) for index in range(600)
            for thing in sample_graph(limits, "train", index)["objects"]]
    assert not new & set(seen)
    for place, words in enumerate((limits.colours, limits.shapes, limits.textures)):
        counts = [sum(kind[place] == word for kind in seen) for word in words]
        assert min(counts) > 0.5 * len(seen) / len(words)
    for index in range(300):
        objects = sample_graph(limits, "heldout", index)["objects"]
        assert new & {(thing["colour"], thing["shape"], thing["texture"]) for thing in objects}


def test_objects_of_the_demo_level_keep_to_cells_of_their_own():
    level = get_level("demo")
    side = level.side // level.grid
    for index in range(200):
        things = sample_graph(level, "train", index)["objects"]
        cells = [tuple(int(c // side) for c in thing["centre"]) for thing in things]
        assert len(set(cells)) == len(cells)
        for (column, row), thing in zip(cells, things):
            x0, y0, x1, y1 = thing["box"]
            assert column * side <= x0 and x1 <= (column + 1) * side
            assert row * side <= y0 and y1 <= (row + 1) * side


@both_levels
def test_boxes_hold_their_objects_and_nothing_is_cut_off(level):
    for index in range(60):
        graph = sample_graph(get_level(level), "train", index, seed=5)
        image, side = render(graph), graph["side"]
        empty = render(graph | {"objects": []})
        changed = (image != empty).any(-1)
        for thing in graph["objects"]:
            x0, y0, x1, y1 = thing["box"]
            assert 0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side
            inside = changed[y0:y1, x0:x1]
            assert all(strip.any() for strip in (inside[:2], inside[-2:], inside[:, :2],
                                                 inside[:, -2:])), thing
            changed[y0:y1, x0:x1] = False
            if min(x0, y0, side - x1, side - y1) >= 2:
                wide = [thing | {"box": [x0 - 2, y0 - 2, x1 + 2, y1 + 2]}]
                alone = render(graph | {"objects": [thing]})
                cut = render(graph | {"objects": wide}).astype(int) - alone
                assert abs(cut).max() < 32  # a trace of anti-aliasing at tips
        assert not changed.any()


def test_objects_do_not_touch():
    for index in range(100):
        boxes = np.array([thing["box"] for thing in
                          sample_graph(get_level("full"), "train", index)["objects"]])
        space = np.maximum(boxes[:, None, :2] - boxes[None, :, 2:],
                           boxes[None, :, :2] - boxes[:, None, 2:]).max(-1)
        np.fill_diagonal(space, GAP)
        assert space.min() >= GAP


@pytest.mark.parametrize("shape", DISTANCES)
def test_shapes_fill_their_extents(shape):
    axis = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    inside = DISTANCES[shape](axis[None], axis[:, None]) < 0
    half_x, half_y = (np.abs(axis[inside.any(side)][[0, -1]]) for side in (0, 1))
    np.testing.assert_allclose(half_x, EXTENTS[shape][0], atol=0.02)
    np.testing.assert_allclose(half_y, EXTENTS[shape][1], atol=0.02)


def test_shapes_differ_when_small():
    """At 14 pixels, any two shapes differ in at least an eighth of their pixels."""
    axis = (np.arange(14, dtype=np.float32) - 6.5) / 7
    masks = np.array([DISTANCES[shape](axis[None], axis[:, None]) < 0
                      for shape in get_level("demo").shapes])
    differ = (masks[:, None] != masks).sum((2, 3))
    union = (masks[:, None] | masks).sum((2, 3))
    assert (differ / union)[~np.eye(len(masks), dtype=bool)].min() > 0.125


@both_levels
def test_colours_stand_out(level):
    """From each other and from every background, in RGB distance."""
    colours = np.array([COLOURS[name] for name in get_level(level).colours], np.float32)
    apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
    assert apart[~np.eye(len(colours), dtype=bool)].min() > 70
    for index in range(100):
        graph = sample_graph(get_level(level), "train", index)
        pixels = background(graph["background"], graph["side"]).reshape(-1, 1, 3)[::16]
        assert np.linalg.norm(pixels - colours, axis=-1).min() > 50


def test_a_plain_object_has_its_colour():
    centre = {"centre": [32.0, 32.0], "box": [20, 20, 44, 44], "diameter": 24}
    for texture in ("plain", "striped", "dotted"):
        graph = {"side": 64, "background": {"kind": "plain", "colours": [[120] * 3] * 2, "seed": 1},
                 "objects": [item("orange", "circle", texture=texture) | centre]}
        disc = render(graph)[25:39, 25:39].reshape(-1, 3)
        share = (disc == COLOURS["orange"]).all(-1).mean()
        assert share == 1 if texture == "plain" else 0.2 < share < 0.8


@both_levels
def test_a_scene_is_a_function_of_seed_split_and_index(level):
    def same(a, b):
        return (a["image"] == b["image"]).all() and a["captions"] == b["captions"]

    scene = make_scene(level, "train", 1, 7)
    assert same(scene, make_scene(level, "train", 1, 7))
    for other in (("train", 2, 7), ("train", 1, 8), ("heldout", 1, 7)):
        assert not same(scene, make_scene(level, *other))
    digest = hashlib.blake2b(digest_size=8)
    for index in range(40):
        scene = make_scene(level, "train", 0, index)
        digest.update(json.dumps([scene["captions"], scene["graph"]]).encode())
    assert digest.hexdigest() == CONTENT[VERSION, level]


def test_any_number_of_processes_makes_the_same_scenes():
    one, three = (list(generate("demo", "train", 0, 150, workers)) for workers in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
        assert a == b


def test_phrases():
    rng = np.random.default_rng(0)
    assert noun_phrase({"count": 1, "colour": "orange"}, rng) == "an orange shape"
    assert noun_phrase({"count": 3, "shape": "cross"}, rng) == "three crosses"
    assert noun_phrase({"count": 1, "shape": "ring"}, rng, another=True) == "another ring"
    said = {noun_phrase({"count": 1, "texture": "striped", "shape": "star"}, rng)
            for _ in range(50)}
    assert said == {"a striped star", "a star with stripes"}
    form = {"mentions": [{"count": 2, "shape": "ring"}, {"count": 1, "shape": "star"}],
            "relations": [[0, "near", 1]], "background": "plain"}
    said = {say(form, rng) for _ in range(100)}
    assert "two rings are near a star on a plain background" in said
    assert "close to a star there are two rings on a plain background" in said
    assert all(" is " not in text for text in said)


def test_unknown_level():
    with pytest.raises(UserError, match="level 'easy' is unknown; use one of .*demo"):
        get_level("easy")


def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "MADE", 16)
    command.main(["full", "--scenes", "16", "--sheet", str(tmp_path / "sheet.png")])
    said = capsys.readouterr().out
    assert "level full: 128 px, 2 to 6 objects" in said
    assert "100.0% of 80 captions are true of one of 16" in said
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="error: The scenes level 'easy' is unknown"):
        command.main(["easy"])
