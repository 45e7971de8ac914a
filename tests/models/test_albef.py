"""The model: official sizes, padding, shared fusion passes, half precision."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from official import read_tree, write_tensors
import pytest

from albef_jax.config import default_config
from albef_jax.models.albef import PIXEL_MEAN, PIXEL_STD, Albef, normalise_image
from albef_jax.tasks import make_task
from albef_jax.weights.foreign.kinds import KINDS

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"
# float32 sums in another order; values are of order 1.
ATOL = 2e-5


def test_the_official_configuration_has_the_official_tensors():
    """Every shape and both counts of the recorded manifest; nothing is allocated."""
    config = default_config()
    task = make_task(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    info = json.loads((MANIFESTS / "pretrain.info.json").read_text())
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    momentum = sum(leaf.size for leaf in jax.tree.leaves(task.teacher_of(shapes)))
    assert count == info["trainable_parameters"] == 209937725
    assert momentum == info["momentum_parameters"] == 209936186

    state = {"params": shapes, "teacher": task.teacher_of(shapes),
             "memory": jax.eval_shape(task.init_memory, jax.random.key(0))}
    empty = jax.tree.map(lambda leaf: np.broadcast_to(leaf.dtype.type(0), leaf.shape), state)
    tensors = write_tensors(KINDS["pretrain"].table(config), empty, config.model.patch_size)
    for name, of in info["tied"].items():
        tensors[name] = tensors[of]
    ours = {name: list(tensor.shape) for name, tensor in tensors.items()}
    official = json.loads((MANIFESTS / "pretrain.json").read_text())
    no_parameters = {"text_encoder.bert.embeddings.position_ids",
                     "text_encoder_m.bert.embeddings.position_ids"}
    assert len(official) == info["n_keys"]
    assert ours == {name: s for name, s in official.items() if name not in no_parameters}


def test_official_layout_there_and_back(tiny_run):
    task, _, state, _ = tiny_run("model.fusion_layers=2")
    model = task.model.config
    table = KINDS["pretrain"].params_table(model)
    tensors = write_tensors(table, state.params, model.patch_size)
    back = read_tree(table, tensors)
    jax.tree.map(np.testing.assert_array_equal, back, dict(state.params))
    # A convolution over patches is their product with the flattened kernel.
    patch = np.random.default_rng(0).normal(size=(8, 8, 3))
    conv = tensors["visual_encoder.patch_embed.proj.weight"]
    kernel = state.params["visual_encoder"]["patch_embed"]["kernel"]
    np.testing.assert_allclose(np.einsum("hwc,ochw->o", patch, conv), patch.ravel() @ kernel,
                               rtol=1e-5, atol=1e-5)


@pytest.fixture
def bound(tiny_run):
    """`call(method, ...)` on a model with two fusion layers, and a batch."""
    task, _, state, batch = tiny_run("model.fusion_layers=2")

    def call(method, *args, **kwargs):
        return jax.jit(lambda p, *a: task.model.apply({"params": p}, *a, method=method,
                                                      **kwargs))(state.params, *args)

    return call, batch


def fuse(model, *args, **kwargs):
    return model.text_encoder.fuse(*args, **kwargs)


def test_padding_changes_nothing(bound):
    """Other ids under the padding, and more padding: real tokens come out the same."""
    call, batch = bound
    ids, mask = batch["text_ids"][:4], batch["text_mask"][:4].at[:, 9:].set(0)
    real = np.asarray(mask, bool)
    scrambled = jnp.where(mask == 1, ids, 77)
    longer = jnp.pad(ids, ((0, 0), (0, 8))), jnp.pad(mask, ((0, 0), (0, 8)))
    image, _ = call(Albef.encode_image, batch["image"][:4])
    outputs = []
    for one_ids, one_mask in ((ids, mask), (scrambled, mask), longer):
        text, feature = call(Albef.encode_text, one_ids, one_mask)
        words = call(Albef.mlm_logits, image, one_ids, one_mask)
        outputs.append((text[:, :16][real], feature, words[:, :16][real],
                        call(Albef.match, image, text, one_mask)))
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other):
            np.testing.assert_allclose(a, b, atol=ATOL)
    # But a real token does matter.
    changed, _ = call(Albef.encode_text, ids.at[:, 3].set(77), mask)
    assert np.abs(changed[:, 0] - outputs[0][0].reshape(-1, 32)[0]).max() > 1e-2


@pytest.fixture
def sets(bound):
    """Four text sets as in training: states `[4, 6, 16, 32]`, masks, images, other images."""
    call, batch = bound
    rng = np.random.default_rng(0)
    states = jnp.asarray(rng.normal(size=(4, 6, 16, 32)), jnp.float32)
    masks = jnp.asarray(np.arange(16) < rng.integers(4, 17, (4, 6, 1)), jnp.int32)
    image, _ = call(Albef.encode_image, batch["image"][:6])
    return states, masks, image, jnp.array([3, 0, 5, 1, 2, 1])


def test_shared_image_keys_equal_a_pass_per_set(bound, sets):
    """Sets that share images in one pass, the last with other images; also without them."""
    call, (states, masks, image, other) = bound[0], sets
    together = call(fuse, states, masks, image, other)
    alone = call(fuse, states, masks, image)
    for i in range(4):
        own = call(fuse, states[i:i + 1], masks[i:i + 1], image)
        np.testing.assert_allclose(alone[i], own[0], atol=ATOL)
        read = call(fuse, states[i:i + 1], masks[i:i + 1], image[other]) if i == 3 else own
        np.testing.assert_allclose(together[i], read[0], atol=ATOL)
    assert np.abs(together[3] - alone[3]).max() > 1e-2
    only_swapped = call(fuse, states[3:], masks[3:], image, other)
    np.testing.assert_allclose(only_swapped[0], together[3], atol=ATOL)


def test_losses_read_the_full_fusion_at_their_positions(bound, sets):
    call, (states, masks, image, other) = bound[0], sets
    positions = jnp.array([1, 17, 30, 0, 95])
    mlm, itm = call(lambda model, *args: model.text_encoder.fuse_for_losses(*args, True),
                    states, masks, image, other, positions)
    full = call(fuse, states, masks, image, other)
    np.testing.assert_allclose(mlm, full[0].reshape(-1, 32)[positions], atol=ATOL)
    np.testing.assert_allclose(itm, full[1:, :, 0], atol=ATOL)
    at = call(fuse, states[:1], masks[:1], image, select_m=positions)
    np.testing.assert_allclose(at, mlm, atol=ATOL)


def test_evaluation_functions_read_the_full_fusion(bound):
    call, batch = bound
    ids, mask = batch["text_ids"], batch["text_mask"]
    image, image_feat = call(Albef.encode_image, batch["image"])
    text, text_feat = call(Albef.encode_text, ids, mask)
    fused = call(fuse, text[None], mask[None], image)[0]
    np.testing.assert_allclose(call(Albef.match, image, text, mask),
                               call(Albef.itm_logits, fused[:, 0]), atol=ATOL)
    np.testing.assert_allclose(call(Albef.mlm_logits, image, ids, mask),
                               call(lambda model, x: model.text_encoder.predict_words(x), fused),
                               atol=10 * ATOL)
    for feat in (image_feat, text_feat):
        assert feat.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(feat, axis=-1), 1.0, rtol=1e-6)


def test_clean_and_masked_texts_share_a_pass(bound):
    call, batch = bound
    ids, mask = batch["text_ids"], batch["text_mask"]
    masked = ids.at[:, 2].set(4)
    clean_states, masked_states = call(Albef.encode_masked, ids, masked, mask)
    np.testing.assert_allclose(clean_states, call(Albef.encode_text, ids, mask)[0], atol=ATOL)
    np.testing.assert_allclose(masked_states, call(Albef.encode_text, masked, mask)[0], atol=ATOL)


def test_half_precision_stays_close(tiny_run):
    """bfloat16 keeps 8 bits: features move by about 1%, losses by less; parameters are float32."""
    outputs = {}
    for dtype in ("float32", "bfloat16"):
        task, _, state, batch = tiny_run(f"model.dtype={dtype}")
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        fns = {name: jax.jit(fn) for name, fn in task.predict_fns().items()}
        params = state.params
        image, image_feat = fns["encode_image"](params, batch["image"])
        text, text_feat = fns["encode_text"](params, batch["text_ids"], batch["text_mask"])
        assert image.dtype == text.dtype == jnp.dtype(dtype)
        match = fns["match"](params, image, text, batch["text_mask"])
        words = fns["mlm_logits"](params, image, batch["text_ids"], batch["text_mask"])
        assert match.dtype == words.dtype == image_feat.dtype == jnp.float32
        outputs[dtype] = image_feat, text_feat, match, words
    for full, half in zip(outputs["float32"], outputs["bfloat16"]):
        error = np.abs(np.asarray(half) - full).max()
        assert 0 < error < 0.03 * max(1.0, np.abs(full).max())


def test_images_are_normalised_on_the_device():
    """uint8 pixels with the public code's statistics; floats are taken as they are."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (pixels / 255.0 - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    np.testing.assert_allclose(normalise_image(jnp.asarray(pixels)), expected, atol=1e-6)
    floats = jnp.asarray(expected, jnp.float32)
    assert normalise_image(floats) is floats
