"""Every pair scored: against a plain double loop, by folds, and of another model's candidates."""

import jax
import numpy as np
import pytest

from albef_jax.errors import UserError
from albef_jax.evaluators import make_evaluator, pair_retrieval
from albef_jax.evaluators.recall import best_of_each, fold_recalls, ranks, recalls


@pytest.fixture(scope="module")
def model(fresh_imagebert):
    """Config, tokenizer and a fresh model."""
    return fresh_imagebert("retrieval")


def evaluator(model, **options):
    config, tokenizer, _ = model
    block = dict(config.evals.dev.to_dict(), **options)
    return make_evaluator("dev", block, config, tokenizer)


@pytest.fixture(scope="module")
def expected(model):
    """Scores of the 24 images and 48 captions of the held-out shelves, pair by pair."""
    dev = evaluator(model)
    data, forward = dev.held_out, model[2]
    with_all = dict(dev.fields)
    images = dev.held_out._set._images.some(list(range(data.num_images)))
    assert set(with_all) == {"regions", "text", "image_id"}
    match = jax.jit(forward["match"])
    table = np.empty((data.num_images, len(data.texts)), np.float32)
    names = ("regions", "regions_box", "regions_mask")
    for text in range(len(data.texts)):
        rows = np.full(data.num_images, text)
        table[:, text] = match(forward.params, text_ids=data.text_ids[rows],
                               text_mask=data.text_mask[rows],
                               **{name: images[name] for name in names})
    return table, data.text_image


@pytest.mark.parametrize("batch_size, at_once", [(16, 2**22), (5, 100), (7, 1)])
def test_scores_are_those_of_a_plain_loop(model, expected, monkeypatch, batch_size, at_once):
    monkeypatch.setattr(pair_retrieval, "PAIRS_AT_ONCE", at_once)
    dev = evaluator(model, batch_size=batch_size)
    scores = dev.scores(model[2])
    np.testing.assert_allclose(scores, expected[0], rtol=0, atol=1e-4)
    assert dev.num_pairs == 24 * 48
    assert dev.names() == list(dict(dev.run(model[2])))


def test_recalls_and_folds(model, expected):
    table, text_image = expected
    values = dict(evaluator(model).run(model[2]))
    whole = recalls(table, table.T, text_image, "lower")
    assert {name: values[name] for name in whole} == pytest.approx(whole)
    halves = [recalls(table[rows, texts], table[rows, texts].T, text_image[texts] - rows.start,
                      "lower")
              for rows, texts in ((slice(0, 12), slice(0, 24)), (slice(12, 24), slice(24, 48)))]
    for name in whole:
        assert values[f"fold_{name}"] == pytest.approx(np.mean([half[name] for half in halves]))
    assert values["fold_r_mean"] > values["r_mean"]  # among fewer
    assert "fold_r_mean" not in dict(evaluator(model, folds=0).run(model[2]))


def test_only_candidates_of_another_model_are_scored(model, expected, tmp_path):
    table, text_image = expected
    rng = np.random.default_rng(0)
    features = {"image_features": rng.normal(size=(24, 6)).astype(np.float32),
                "caption_features": rng.normal(size=(48, 6)).astype(np.float32)}
    np.savez(tmp_path / "features.npz", **features)
    dev = evaluator(model, candidates=str(tmp_path / "features.npz"), k=3)
    scores = dev.scores(model[2])
    sims = features["image_features"] @ features["caption_features"].T
    chosen = np.zeros_like(sims, bool)
    for image in range(24):
        chosen[image, np.argsort(-sims[image])[:3]] = True
    for text in range(48):
        chosen[np.argsort(-sims[:, text])[:3], text] = True
    assert dev.num_pairs == chosen.sum() < 24 * 48
    np.testing.assert_allclose(scores, np.where(chosen, table, -100.0), rtol=0, atol=1e-5)

    np.savez(tmp_path / "other.npz", image_features=features["image_features"][:5],
             caption_features=features["caption_features"])
    with pytest.raises(UserError, match="holds 5 images and 48 captions, but .* 24 and 48"):
        evaluator(model, candidates=str(tmp_path / "other.npz"))
    (tmp_path / "no.npz").write_text("nothing")
    with pytest.raises(UserError, match="make it with `albef embed`"):
        evaluator(model, candidates=str(tmp_path / "no.npz"))


def test_more_folds_than_images(model):
    with pytest.raises(UserError, match="folds=25, more than its 24 images"):
        evaluator(model, folds=25)


def test_the_lower_index_first_among_equal_scores():
    scores = np.random.default_rng(0).integers(0, 4, (9, 6)).astype(np.float32)
    target = np.arange(9) % 6
    order = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(ranks(scores, target, "lower"),
                                  (order == target[:, None]).argmax(axis=1))
    rng = np.random.default_rng(1)
    text_image = rng.permutation(np.arange(40) % 7)
    scores = rng.integers(0, 5, (7, 40)).astype(np.float32)
    every = ranks(scores[text_image], np.arange(40), "lower")
    least = [every[text_image == image].min() for image in range(7)]
    best = best_of_each(scores, text_image, "lower")
    np.testing.assert_array_equal(ranks(scores, best, "lower"), least)


def test_folds_leave_out_what_is_left_over():
    scores = np.eye(5, dtype=np.float32)
    assert fold_recalls(scores, np.arange(5), 2)["r_mean"] == 100.0
    scores[4] = -1  # the image that is left over
    assert fold_recalls(scores, np.arange(5), 2)["r_mean"] == 100.0
