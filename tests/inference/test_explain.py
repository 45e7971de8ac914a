"""Heat maps: the hook in the attention costs nothing, and words, padding and layers are right.

Their values are those of the public code: tests/golden/grounding in tests/test_parity.py.
"""

import jax
import numpy as np
from PIL import Image
import pytest

from albef_jax.cli import main
from albef_jax.errors import UserError
from albef_jax.evaluators.heat import join_pieces, overlay
from albef_jax.inference.commands import draw
from albef_jax.models import bert, gradcam, vit


def test_the_hook_is_nothing_in_training(tiny_run, monkeypatch):
    """The same program as without it."""
    task, _, state, batch = tiny_run("task=retrieval")
    group = {name: rows[:8] for name, rows in batch.items()}

    def program():
        def loss(params):
            return task.loss(params, state.teacher, state.memory, group, jax.random.key(0),
                             {"alpha_itc": 0.4})[0]

        return jax.jit(loss).lower(state.params).as_text()

    hooked = program()
    for module in (bert, vit):
        monkeypatch.setattr(module, "visible", lambda _, probs: probs)
    assert program() == hooked


def arguments(model, batch):
    return (model.params, np.asarray(batch["image"][:3]), np.asarray(batch["text_ids"][:3]),
            np.asarray(batch["text_mask"][:3]))


def test_heat_is_of_real_words_only(model, tiny_run):
    params, image, ids, mask = arguments(model, tiny_run()[3])
    mask = mask.copy()
    mask[0, 5:] = 0
    itm_heat = jax.jit(model.forward["itm_heat"])
    heat, logits = map(np.asarray, itm_heat(params, image, ids, mask))
    assert heat.shape == (3, ids.shape[1], 4, 4) and logits.shape == (3, 2)
    assert (heat >= 0).all() and heat[:, 0].any() and not heat[0, 5:].any()
    # The one fusion layer of this model is its last, which only [CLS] leaves.
    assert not heat[:, 1:].any()
    shorter, _ = itm_heat(params, image[:1], ids[:1, :5], mask[:1, :5])
    np.testing.assert_allclose(shorter[0], heat[0, :5], rtol=1e-3, atol=1e-9)


def test_layers(model):
    config = model.config.model.copy_and_resolve_references().unlock()
    config.update(text_layers=6, fusion_layers=6)
    assert gradcam.default_layer(config) == 8
    config.fusion_layers = 2
    assert gradcam.default_layer(config) == 6
    assert gradcam.fusion_layer(config, -1) == 0 and gradcam.fusion_layer(config, 6) == 0
    for layer in (5, 8):
        with pytest.raises(UserError, match=f"Layer {layer} reads no image; .* are 6 to 7"):
            gradcam.fusion_layer(config, layer)
    with pytest.raises(UserError, match="ViT block 1 does not exist; choose one of 0 to 0"):
        model.explain(np.zeros((8, 8, 3), np.uint8), "a", mode="itc", layer=1)
    with pytest.raises(UserError, match="mode 'both' is unknown"):
        model.explain(np.zeros((8, 8, 3), np.uint8), "a", mode="both")


def test_explain_agrees_with_the_other_calls(model, scenes):
    image, text = scenes / "a" / "03.png", "a small red circle"
    explained = model.explain(image, text)
    assert " ".join(explained.words) == text
    assert explained.heat.shape == (4, 4) and explained.word_heat.shape == (4, 4, 4)
    np.testing.assert_allclose(explained.score, model.match(image, text)[0], rtol=1e-4)
    explained = model.explain(image, text, mode="itc")
    cosine = float(model.encode_image(image)[0] @ model.encode_text(text)[0])
    assert explained.words == [] and explained.heat.max() > 0
    np.testing.assert_allclose(explained.score, cosine, rtol=1e-4)
    sheet = draw(Image.open(image).convert("RGB"), explained, text)
    assert sheet.size[0] > sheet.size[1]


def test_pieces_join_to_words(model):
    ids, _ = model.tokenizer.encode(["red qqq circle"], 12)
    words, numbers = join_pieces(ids[0], model.tokenizer)
    assert len(words) == 3 and words[0] == "red" and words[2] == "circle"
    assert numbers[0] == -1 and list(dict.fromkeys(numbers)) == [-1, 0, 1, 2]


def test_overlay_is_hot_where_the_heat_is():
    heat = np.zeros((4, 4))
    heat[0, 3] = 1
    shown = np.asarray(overlay(Image.new("RGB", (40, 20), "black"), heat), int)
    assert shown.shape == (20, 40, 3) and shown[2, 36].max() > 60 and not shown[17, 3].any()


def test_command(workdir, scenes, tmp_path, capsys):
    arguments = ["explain", str(workdir), "--text", "a red circle"]
    image = ["--image", str(scenes / "a" / "03.png")]
    out = tmp_path / "heat.png"
    assert main([*arguments, *image, "--out", str(out)]) == 0
    assert "probability of a match" in capsys.readouterr().out
    assert Image.open(out).width > 400
    assert main([*arguments, *image, "--out", str(tmp_path / "heat.txt")]) == 2
    assert "end in one of .png" in capsys.readouterr().err
    assert main([*arguments, *image, "--out", "/proc/heat.png"]) == 2
    assert "/proc/heat.png cannot be written (No such file" in capsys.readouterr().err
    (tmp_path / "no.png").write_bytes(b"no image")
    assert main([*arguments, "--image", str(tmp_path / "no.png"), "--out", str(out)]) == 2
    assert "no.png cannot be read (not an image)" in capsys.readouterr().err
