"""Captions beside wrong ones: of scenes, and in the files of ARO, SugarCrepe and Winoground."""

from collections import Counter
import io
import json

import numpy as np
from PIL import Image
import pytest

from albef_jax.data.sources import make_source
from albef_jax.errors import UserError
from albef_jax.scenes.captions import is_true
from albef_jax.scenes.contrasts import KINDS, contrast
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.levels import get_level

ARO = {"image_path": "1.png", "true_caption": "the door is left of the man",
       "false_caption": "the man is left of the door", "relation_name": "to the left of",
       "bbox_x": 2, "bbox_y": 1, "bbox_w": 3, "bbox_h": 4}
SUGARCREPE = {"filename": "2.jpg", "caption": "A dog runs.", "negative_caption": "A cat runs."}
WINOGROUND = {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1",
              "caption_0": "a cup in a bag", "caption_1": "a bag in a cup", "tag": "Noun",
              "collapsed_tag": "Object", "num_main_preds": 1}


@pytest.fixture
def source_of(tmp_path):
    def make(name, text):
        (tmp_path / name).write_text(text)
        return make_source(f"contrasts:{tmp_path / name}")

    return make


def values(source, index):
    return [source.get(index, name) for name in ("text", "foil", "kind", "group")]


def test_aro_shows_the_part_of_the_image_that_is_spoken_of(source_of, tmp_path):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    whole = {key: value for key, value in ARO.items() if not key.startswith("bbox")}
    source = source_of("visual_genome_relation.json", json.dumps([ARO, ARO, whole]))
    assert values(source, 1) == [["the door is left of the man"], "the man is left of the door",
                                 "visual_genome_relation", None]
    np.testing.assert_array_equal(source.image(0), pixels[1:5, 2:5])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(source.image(2)))), pixels)
    assert source.image_ids().tolist() == [0, 0, 1]
    assert source.name(0) == "1.png (2, 1, 5, 5)" and source.name(2) == "1.png"


def test_a_part_outside_its_image_is_said(source_of, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    source = source_of("aro.json", json.dumps([ARO]))
    with pytest.raises(OSError, match=r"\(2, 1, 5, 5\) is not inside its 4 x 4 pixels"):
        source.image(0)


def test_sugarcrepe_is_an_object_of_rows_and_its_files_are_kinds(source_of, tmp_path):
    source_of("swap_att.json", json.dumps({"7": SUGARCREPE}))
    source_of("add_obj.json", json.dumps({"0": SUGARCREPE, "3": SUGARCREPE}))
    source = make_source({"kind": "contrasts", "image_roots": (str(tmp_path),), "files": (
        str(tmp_path / "add_obj.json"), str(tmp_path / "swap_att.json"))})
    assert [source.get(i, "kind") for i in range(3)] == ["add_obj", "add_obj", "swap_att"]
    assert values(source, 2)[:2] == [["A dog runs."], "A cat runs."] and source.name(0) == "2.jpg"


def test_winoground_has_a_row_per_line_and_two_examples_in_it(source_of):
    rows = [WINOGROUND, {**WINOGROUND, "image_0": "a.jpg", "collapsed_tag": "Relation"}]
    source = source_of("examples.jsonl", "\n".join(map(json.dumps, rows)))
    assert len(source) == 4
    assert values(source, 0) == [["a cup in a bag"], "a bag in a cup", "Object", 0]
    assert values(source, 1) == [["a bag in a cup"], "a cup in a bag", "Object", 0]
    assert [source.get(i, "group") for i in range(4)] == [0, 0, 1, 1]
    assert [source.name(i) for i in range(3)] == ["ex_0_img_0.png", "ex_0_img_1.png", "a.jpg"]
    assert source.get(2, "kind") == "Relation"


@pytest.mark.parametrize("row, sentence", [
    ({**ARO, "false_caption": 1}, 'must be an object whose "false_caption" is a text'),
    ({**ARO, "bbox_w": "3"}, 'must be an object whose "bbox_w" is a whole number'),
    ({**SUGARCREPE, "filename": None}, 'must be an object whose "filename" is a text'),
    ({**WINOGROUND, "caption_1": []}, 'must be an object whose "caption_1" is a text'),
    ([], 'must be an object whose "filename" is a text'),
])
def test_wrong_rows_are_named(source_of, row, sentence):
    with pytest.raises(UserError, match=rf"Row 1 \(counted from 0\) of .*rows.json {sentence}"):
        source_of("rows.json", json.dumps([SUGARCREPE, row]))


@pytest.mark.parametrize("level", ["demo", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_scenes_are_true_and_their_foils_false_in_one_thing(level, kind):
    level, found = get_level(level), 0
    for index in range(60):
        graph = sample_graph(level, "heldout", index)
        made = contrast(graph, level, kind, scene_rng(0, "heldout", index, 99))
        if made is None:
            continue
        found += 1
        text, foil, form, wrong = made
        assert is_true(form, graph) and not is_true(wrong, graph) and text != foil
        words, other = (Counter("a" if word == "an" else word for word in one.split())
                        for one in (text, foil))
        changed = ((words - other) + (other - words)).total()
        assert changed == 0 if "swapped" in kind else 0 < changed <= 6, (text, foil)
    assert found > 25


def test_kinds_of_scenes_come_in_turn_and_are_the_same_again(scenes_contrasts):
    source, again = scenes_contrasts(), scenes_contrasts()
    assert len(source) == 40 and [source.get(i, "kind") for i in range(5)] == [*KINDS]
    for i in range(40):
        assert source.get(i, "text") == again.get(i, "text") != [source.get(i, "foil")]
        assert source.image(i).shape == (96, 96, 3)
        assert source.get(i, "image_id") == source.scene(i)


@pytest.fixture
def scenes_contrasts(tmp_path):
    return lambda: make_source(dict(kind="scenes_contrasts", size=8, data_dir=str(tmp_path)))
