"""Hidden words and regions: what is counted, against a plain loop; what the page shows."""

import jax
import numpy as np
from PIL import Image
import pytest

from albef_jax.evaluators import make_evaluator, masked_regions


@pytest.fixture(scope="module")
def model(fresh_imagebert):
    """Config, tokenizer and a fresh model."""
    return fresh_imagebert()


def evaluator(model, **options):
    config, tokenizer, _ = model
    return make_evaluator("masked", dict(kind="masked_regions", source=config.evals.dev.source,
                                         **options), config, tokenizer)


def test_values_do_not_depend_on_the_batch(model):
    first, second = (dict(evaluator(model, batch_size=size).run(model[2])) for size in (5, 24))
    assert first == second and set(first) == set(evaluator(model).names())
    assert all(0 <= value <= 100 for value in first.values())
    assert first["mlm_top1"] <= first["mlm_top5"] and first["moc_top1"] <= first["moc_top5"]


def test_what_is_hidden_and_what_counts_as_found(model):
    """A model that knows the hidden classes finds all; of others the share that is right."""
    config, tokenizer, forward = model
    special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    seen = {}

    def words(params, text_ids, **arrays):
        seen["masked"] = text_ids
        return jax.nn.one_hot(np.full(text_ids.shape, tokenizer.special_ids[1]),
                              tokenizer.vocab_size)

    def objects(params, regions, regions_class, **arrays):
        seen["regions"] = regions
        wrong = np.arange(regions.shape[1]) == 1
        return jax.nn.one_hot((regions_class + wrong) % config.model.classes,
                              config.model.classes), None

    rows = evaluator(model)._rows
    arrays = rows.data.some(list(range(24)))
    count = masked_regions.hits(words, objects, tokenizer.mask_id, special, 0)
    result = count(forward.params, **arrays)
    found, hidden = map(np.asarray, result["moc"])
    masked = np.asarray(seen["masked"]) != arrays["text_ids"]
    zeroed = np.all(np.asarray(seen["regions"]) == 0, axis=-1) & (arrays["regions_mask"] > 0)
    assert (np.asarray(seen["masked"])[masked] == tokenizer.mask_id).all()
    assert not masked[np.isin(arrays["text_ids"], special)].any()
    for hidden_share, there in ((masked.sum(), ~np.isin(arrays["text_ids"], special)),
                                (zeroed.sum(), arrays["regions_mask"] > 0)):
        assert 0.07 < hidden_share / there.sum() < 0.25
    np.testing.assert_array_equal(hidden, zeroed.sum(axis=1))
    np.testing.assert_array_equal(found[:, 0], np.delete(zeroed, 1, axis=1).sum(axis=1))
    found, hidden = map(np.asarray, result["mlm"])
    np.testing.assert_array_equal(hidden, masked.sum(axis=1))
    assert not found[:, 0].any() and found.shape == (24, 2)
    other = masked_regions.hits(words, objects, tokenizer.mask_id, special, 1)
    other(forward.params, **arrays)
    assert (np.asarray(seen["masked"]) != arrays["text_ids"]).tolist() != masked.tolist()


def test_examples_show_regions_and_guesses(model):
    _, tokenizer, forward = model
    shown = evaluator(model).examples(forward, None)["regions"]
    assert len(shown) == masked_regions.QUERIES
    for item in shown:
        assert isinstance(item["picture"], Image.Image) and item["label"] != "no class"
        assert len(item["classes"]) == len(item["guesses"][0]["model"]) == masked_regions.SHOWN
        assert 1 <= len(item["guesses"]) <= 2
        assert sum(piece["masked"] for piece in item["pieces"]) == len(item["guesses"])
        shares = [guess["share"] for guess in item["classes"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6


def test_boxes_are_drawn_where_they_are():
    image = Image.new("RGB", (50, 100), "black")
    box = np.array([[0.0, 0.0, 0.5, 0.5, 0.25], [0.5, 0.5, 1.0, 0.75, 0.1], [0, 0, 1, 1, 1]])
    drawn = np.asarray(masked_regions.drawn_boxes(image, box, np.array([1, 1, 0]), 1))
    assert drawn.shape == (384, 192, 3)
    assert drawn[0, 40].tolist() == [255, 255, 255] and drawn[100, 0].tolist() == [255] * 3
    assert drawn[192, 150].tolist() == [255, 59, 107] and not drawn[383, 20].any()
