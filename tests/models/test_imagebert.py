"""ImageBERT's stream: its columns, what padding and order of regions change, and its scores.

Recorded values of every layer are in tests/test_parity.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.models import flops
from albef_jax.models.imagebert import ImageBert, region_part
from albef_jax.tasks import make_task

T, N, F = 7, 5, 6
SIZES = dict(text_width=16, text_layers=2, text_heads=2, text_mlp_width=32, max_positions=12,
             dtype="float32", init_std=0.3, classes=4, vocab_size=30, pad_id=0, cls_id=2, sep_id=3,
             mask_id=4, dropout=0.0, attention_dropout=0.0)


def make(global_width=0, task="imagebert_pretrain", **model):
    config = default_config(task).unlock()
    config.model.update(SIZES | model)
    config.data.update(text_length=T, regions_length=N, regions_width=F, global_width=global_width)
    task = make_task(config.lock())
    return task, task.init(jax.random.key(0))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    text_mask = (np.arange(T) < np.array([[4], [T]])).astype(np.int32)
    regions_mask = (np.arange(N) < np.array([[3], [N]])).astype(np.int32)
    return {"text_ids": np.where(text_mask, rng.integers(5, 30, (2, T)), 0).astype(np.int32),
            "text_mask": text_mask, "regions_mask": regions_mask,
            "regions": rng.normal(size=(2, N, F)).astype(np.float32),
            "regions_box": rng.random((2, N, 5), np.float32),
            "global_feature": rng.normal(size=(2, 1, 3)).astype(np.float32)}


def encode(task, params, arrays):
    return np.asarray(task.model.apply({"params": params}, arrays, method=ImageBert.encode))


def test_the_papers_lengths_and_parameters():
    """144 columns; 113.9 M parameters, as the recorded manifest counts them."""
    config = default_config("imagebert_pretrain")
    assert flops.imagebert_columns(config.data, config.model.final_sep) == 144
    shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 113_900_923


def test_regions_have_no_order(arrays):
    """A permutation of the regions permutes their states and leaves the others."""
    task, params = make()
    order = np.array([2, 0, 1, 3, 4])  # of both images real or padding stay what they are
    other = arrays | {name: arrays[name][:, order]
                      for name in ("regions", "regions_box", "regions_mask")}
    before, after = encode(task, params, arrays), encode(task, params, other)
    close = dict(rtol=0, atol=2e-6)
    np.testing.assert_allclose(after[:, :T], before[:, :T], **close)
    np.testing.assert_allclose(after[:, T:T + N], before[:, T:T + N][:, order], **close)
    np.testing.assert_allclose(after[:, -1], before[:, -1], **close)


def test_padding_changes_nothing(arrays):
    """Neither more of it nor what is in it; the final [SEP] is not behind it."""
    task, params = make()
    wide = {name: np.pad(array, [(0, 0), (0, 3)] + [(0, 0)] * (array.ndim - 2))
            for name, array in arrays.items() if name != "global_feature"}
    for name in ("regions", "regions_box"):
        wide[name] = np.where(wide["regions_mask"][..., None] > 0, wide[name], 9.0)
    before, after = encode(task, params, arrays), encode(task, params, wide)
    real = arrays["text_mask"] > 0
    np.testing.assert_allclose(after[:, :T][real], before[:, :T][real], rtol=0, atol=2e-6)
    np.testing.assert_allclose(after[:, -1], before[:, -1], rtol=0, atol=2e-6)


def test_without_a_final_sep_there_is_a_column_less(arrays):
    with_sep, without = (encode(*make(final_sep=final), arrays) for final in (True, False))
    assert with_sep.shape[1] == without.shape[1] + 1 == T + N + 1
    assert not np.allclose(with_sep[:, 0], without[:, 0], atol=1e-3)


def test_a_feature_of_the_whole_image_is_one_more_column(arrays):
    task, params = make(global_width=3)
    states = encode(task, params, arrays)
    assert states.shape[1] == T + 1 + N + 1
    np.testing.assert_array_equal(region_part(states, N, True), states[:, T + 1:-1])
    other = encode(task, params, arrays | {"global_feature": arrays["global_feature"] + 1})
    assert np.abs(other - states)[:, 0].max() > 1e-3


@pytest.mark.parametrize("global_width", [0, 3])
def test_scores_of_what_was_embedded_are_those_of_pairs(arrays, global_width):
    """Images and texts are embedded once, also where an image has padding, and joined later."""
    task, params = make(global_width)
    functions = task.predict_fns()
    names = ("regions", "regions_box", "regions_mask") + ("global_feature",) * bool(global_width)
    images = {name: arrays[name] for name in names}
    texts = {name: arrays[name] for name in ("text_ids", "text_mask")}
    expected = task.model.apply({"params": params}, encode(task, params, arrays),
                                method=ImageBert.score_states)
    embeds = functions["embed_image"](params, **images)
    assert embeds.shape == (2, N + bool(global_width), 16)
    assert not np.any(embeds[0, -2:]) and np.all(np.any(embeds[1], axis=-1))
    scores = functions["score"](params, embeds, functions["embed_text"](
        params, texts["text_ids"]), texts["text_mask"])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(functions["match"](params, **images, **texts), expected, atol=1e-6)


def test_half_precision_is_close(arrays):
    task, params = make()
    half, _ = make(dtype="bfloat16")
    exact = task.model.apply({"params": params}, arrays)
    rough = half.model.apply({"params": params}, arrays)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == jnp.float32
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < 0.2 * np.abs(one).max()


def test_retrieval_has_no_heads_for_what_is_masked():
    _, params = make(task="imagebert_retrieval")
    assert not {"moc_head", "mrfr_head"} & params.keys() and "head" not in params["bert"]
    assert "itm_head" in params
