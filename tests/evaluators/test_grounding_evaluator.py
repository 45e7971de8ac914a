"""Pointing game and accuracy at IoU 0.5 against maps that are known, and their baselines."""

import json

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from albef_jax.errors import UserError
from albef_jax.evaluators.grounding import best_proposal, iou

SIZE, GRID = 16, 4
LEFT, RIGHT, ALL = [0, 0, 20, 10], [20, 0, 20, 10], [0, 0, 40, 10]
# Which half is bright (1 is the right one), the box: found, missed, found, not liked at all.
SCENES = [(0, LEFT), (1, LEFT), (1, RIGHT), (None, RIGHT)]


def patches(image):
    """Brightness of the patches, `[b, g, g]`."""
    pixels = image.astype(jnp.float32).mean(axis=-1) / 255
    return pixels.reshape(len(image), GRID, SIZE // GRID, GRID, SIZE // GRID).mean(axis=(2, 4))


def itm_heat(params, image, text_ids, text_mask, layer):
    """Every token reads the bright half, or with layer 7 the dark one."""
    heat = params["strength"] * (1 - patches(image) if layer == 7 else patches(image))
    return heat[:, None] * text_mask[:, :, None, None], jnp.zeros((len(image), 2))


def itc_heat(params, image, text_ids, text_mask, block):
    return params["strength"] * patches(image), jnp.zeros(len(image))


@pytest.fixture
def source(tmp_path):
    """Pictures of 40 x 10 pixels, one half bright, with two proposals; its block."""
    rows = []
    for i, (bright, box) in enumerate(SCENES):
        pixels = np.zeros((10, 40, 3), np.uint8)
        if bright is not None:
            pixels[:, 20 * bright + 3:20 * bright + 17] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": "red " * (1 + i), "bbox": box, "width": 40,
                     "height": 10})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "dets.json").write_text(json.dumps({f"{i}.png": [LEFT, RIGHT] for i in range(4)}))
    return dict(kind="grounding", files=(str(tmp_path / "rows.json"),),
                detections=str(tmp_path / "dets.json"))


@pytest.fixture
def run(build, evaluate):
    """`run(source, **options)` -> values, the same ones every time."""
    def of(source, **options):
        evaluator = build("grounding", source, **dict(batch_size=3) | options)
        functions = {"itm_heat": itm_heat, "itc_heat": itc_heat}
        params = {"strength": np.float32(1), "temp": np.float32(1)}
        values = evaluate(evaluator, params, functions)
        assert evaluate(evaluator, params, functions) == values
        return values

    return of


def test_values(source, run):
    """The black picture repeats the answer before it, which is right there."""
    expected = {"pointing_game": 50.0, "pointing_centre": 50.0, "pointing_random": 50.0,
                "iou_0.5": 75.0, "iou_0.5_random": 50.0}
    assert run(source) == expected
    assert run(source, mode="itc") == expected
    assert run(source, layer=7)["iou_0.5"] == 25.0


def test_boxes_alone(source, run):
    del source["detections"]
    values = run(source, batch_size=64)
    assert list(values) == ["pointing_game", "pointing_centre", "pointing_random"]


def test_box_rules():
    heat = np.ones((10, 40))
    assert best_proposal(heat, [LEFT, ALL, RIGHT]) == ALL  # the larger, by the root of its area
    assert best_proposal(heat, [LEFT, RIGHT]) == LEFT  # the first of equals
    assert best_proposal(-heat, [LEFT, ALL]) is None and best_proposal(heat, []) is None
    heat[:, 5] = 100
    # Ends are cut to whole pixels: column 5 is not in 0 to 5.9.
    assert best_proposal(heat, [(0.0, 0, 5.9, 10), (5.0, 0, 1, 10)]) == (5.0, 0, 1, 10)
    assert iou(LEFT, LEFT) == 1 and iou(LEFT, ALL) == 0.5 and iou(LEFT, RIGHT) == 0
    assert iou(LEFT, (19, 0, 20, 10)) == 0  # a single column
    assert iou(LEFT, (18, 0, 20, 10)) == 20 / 380


@pytest.mark.parametrize("fields, sentence", [
    (dict(mode="both"), "has mode='both'; it must be 'itm' or 'itc'"),
    (dict(mode=3), "has mode=3; it must be 'itm' or 'itc'"),
    (dict(layer=-2), "has layer=-2; it must be a whole number, at least -1"),
    (dict(layer=99), "Layer 99 reads no image; the fusion layers of this model are"),
    (dict(layer=99, mode="itc"), "The ViT block 99 does not exist"),
])
def test_wrong_options(source, build, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        build("grounding", source, **fields)


def test_a_source_without_boxes(make_source_block, build):
    with pytest.raises(UserError, match="has a source without boxes"):
        build("grounding", make_source_block(3))
