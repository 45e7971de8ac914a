"""Masked-word accuracy: what is masked, and every rank against a plain loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.errors import UserError
from albef_jax.evaluators.words import draw_masked


def test_masks_15_percent_of_words_and_nothing_else():
    ids = np.random.default_rng(0).integers(5, 50, (2000, 12))
    ids[:, 0], ids[:, 8], ids[:, 9:] = 2, 3, 0
    masked = draw_masked(ids, (0, 2, 3), np.random.default_rng(1))
    assert not masked[:, [0, 8, 9, 10, 11]].any()
    assert masked[:, 1:8].mean() == pytest.approx(0.15, abs=0.01)
    np.testing.assert_array_equal(masked, draw_masked(ids, (0, 2, 3), np.random.default_rng(1)))
    assert (masked != draw_masked(ids, (0, 2, 3), np.random.default_rng(2))).any()


@pytest.mark.parametrize("batch_size, captions_per_image", [(4, 1), (7, 3), (64, 2)])
def test_evaluator_equals_a_plain_loop(make_source_block, params, predict_fns, tokenizer, build,
                                       evaluate, batch_size, captions_per_image):
    source = make_source_block(41, captions_per_image)
    words = ("red", "dog", "over")
    evaluator = build("masked", source, batch_size=batch_size, words=words)
    values = evaluate(evaluator, params, predict_fns)

    with np.load(source["path"]) as arrays:
        images, captions = arrays["image"], arrays["caption"]
    ids, mask = tokenizer.encode(list(captions.ravel()), 10)
    longest = mask.sum(1).max()
    special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    masked = draw_masked(ids[:, :longest], special, np.random.default_rng(0))
    places, is_word = [], []
    for text, image in enumerate(np.repeat(images, captions_per_image, 0)):
        embeds, _ = predict_fns["encode_image"](params, image[None])
        question = np.where(masked[text], tokenizer.mask_id, ids[text, :longest])[None]
        logits = predict_fns["mlm_logits"](params, embeds, question, mask[text, None, :longest])
        for position in np.flatnonzero(masked[text]):
            order = np.argsort(-np.asarray(logits[0, position]))
            places.append(int(np.where(order == ids[text, position])[0][0]))
            is_word.append(tokenizer.decode([ids[text, position]]) in words)
    assert evaluator.description.startswith(f"{len(places)} masked tokens")
    places, is_word = np.array(places), np.array(is_word)
    assert 0 < is_word.sum() < len(places)
    assert values == pytest.approx(
        {f"mlm_top{depth}": 100 * np.mean(places < depth) for depth in (1, 5)}
        | {"mlm_top1_words": 100 * np.mean(places[is_word] < 1)})
    assert 0 < values["mlm_top5"] < 100


def test_padding_and_undefined_logits_score_nothing(make_source_block, params, predict_fns, build,
                                                    evaluate):
    evaluator = build("masked", make_source_block(6))
    for value in (0.0, np.nan):
        def constant(params, image_embeds, masked_ids, text_mask, value=value):
            return jnp.full((*masked_ids.shape, len(params["word"])), value)
        values = evaluate(evaluator, params, predict_fns | {"mlm_logits": constant})
        assert values == {"mlm_top1": 0.0, "mlm_top5": 0.0}


def test_nothing_to_mask_is_said_at_once(tmp_path, build):
    np.savez(tmp_path / "empty.npz", image=np.zeros((2, 16, 16, 3), np.uint8),
             caption=np.array(["!", "?"]))
    with pytest.raises(UserError, match="too few words"):
        build("masked", dict(kind="arrays", path=str(tmp_path / "empty.npz")))


@pytest.mark.parametrize("words, message", [
    (("red", "turquoise"), "'turquoise', which is not one token"),
    ("red", "it must be a tuple, each item a text"),
    (("red", 3), "it must be a tuple, each item a text"),
])
def test_wrong_words_are_said_at_once(make_source_block, build, words, message):
    with pytest.raises(UserError, match=message):
        build("masked", make_source_block(6), words=words)


def test_words_that_are_never_masked_are_said_at_once(tmp_path, build):
    np.savez(tmp_path / "dogs.npz", image=np.zeros((20, 16, 16, 3), np.uint8),
             caption=np.array(["dog runs over house"] * 20))
    with pytest.raises(UserError, match="masks none of its words"):
        build("masked", dict(kind="arrays", path=str(tmp_path / "dogs.npz")), words=("red",))
