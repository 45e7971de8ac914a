"""Retrieval: every score against a plain double loop.

Recorded scores of the public code are in tests/test_parity.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.evaluators import embeddings, pairs, recall
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.pairs import blocks_by_image, in_calls
from albef_jax.evaluators.recall import UNSCORED, best_of_each, ranks, recalls
from albef_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("at_once", [1, 13, 2**24])
def test_ranks_are_places_in_the_reversed_ascending_sort(monkeypatch, at_once):
    monkeypatch.setattr(recall, "AT_ONCE", at_once)  # compared in parts of so many scores
    scores = np.random.default_rng(0).integers(0, 4, (9, 6)).astype(np.float32)
    target = np.arange(9) % 6
    order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    np.testing.assert_array_equal(ranks(scores, target), (order == target[:, None]).argmax(1))


def test_the_best_text_of_an_image_is_that_of_least_rank():
    rng = np.random.default_rng(1)
    text_image = rng.permutation(np.arange(40) % 7)
    scores = rng.integers(0, 5, (7, 40)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = np.nan
    every = ranks(scores[text_image], np.arange(40))
    least = [every[text_image == image].min() for image in range(7)]
    np.testing.assert_array_equal(ranks(scores, best_of_each(scores, text_image)), least)


def test_a_model_of_nans_finds_nothing():
    values = recalls(np.full((20, 20), np.nan), np.full((20, 20), np.nan), np.arange(20))
    assert values["r_mean"] == 0


def test_best_text_counts_for_an_image():
    score_i2t = np.array([[0.1, 0.9, 0.5, 0.4], [0.9, 0.8, 0.1, 0.2]])
    values = recalls(score_i2t, score_i2t.T, np.array([0, 0, 1, 1]))
    assert (values["i2t_r1"], values["t2i_r1"]) == (50.0, 25.0)
    with pytest.raises(ValueError, match="every image"):
        recalls(score_i2t, score_i2t.T, np.array([0, 0, 0, 0]))


@pytest.mark.parametrize("per_image", [1, 3, 8])
def test_blocks_hold_every_pair_once_beside_its_image(per_image):
    pair_image = np.random.default_rng(0).integers(0, 5, 40)
    images, rows = blocks_by_image(pair_image, per_image)
    assert rows.shape == (len(images), per_image)
    assert set(rows.ravel()) == set(range(40))
    assert (pair_image[rows] == images[:, None]).all()
    assert len(images) == sum(-(-count // per_image) for count in np.bincount(pair_image))


@pytest.mark.parametrize("rows, size, steps", [(1, 4, 3), (12, 4, 3), (13, 4, 3), (30, 1, 7)])
def test_calls_hold_every_row_and_know_their_unused_steps(rows, size, steps):
    calls = list(in_calls(rows, size, steps))
    assert {row.shape for row, _ in calls} == {(size, steps)}
    kept = np.concatenate([row[:, used].T.ravel() for row, used in calls])
    np.testing.assert_array_equal(kept[:rows], np.arange(rows))
    assert len(kept) - rows < size and (kept[rows:] == rows - 1).all()


def plain_scores(params, predict_fns, source, tokenizer, k):
    """Similarities and re-ranked scores, one image and one text at a time."""
    with np.load(source["path"]) as arrays:
        images, captions = arrays["image"], arrays["caption"]
    n, per_image = captions.shape
    texts = captions.ravel()
    image = [predict_fns["encode_image"](params, image[None]) for image in images]
    encoded = [tokenizer.encode([text], 10) for text in texts]
    text = [predict_fns["encode_text"](params, *e) for e in encoded]
    sims = np.array([[float(i[1][0] @ t[1][0]) for t in text] for i in image])
    match = np.array([[float(predict_fns["match"](params, i[0], t[0], e[1])[0, 1])
                       for t, e in zip(text, encoded)] for i in image])
    i2t, t2i = np.full(sims.shape, UNSCORED), np.full(sims.T.shape, UNSCORED)
    for row in range(n):
        for column in np.argsort(-sims[row])[:k]:
            i2t[row, column] = match[row, column]
    for column in range(len(texts)):
        for row in np.argsort(-sims[:, column])[:k]:
            t2i[column, row] = match[row, column]
    return sims, i2t, t2i, np.repeat(np.arange(n), per_image)


@pytest.mark.parametrize("batch_size, k, pairs_per_call, table_bytes", [
    (4, 3, 1, 2**20), (64, 5, 1024, 2**20), (5, 100, 40, 2**20),
    (5, 4, 12, 1000)])  # too little for the 11 x 4 x 12 floats of the images: four at a time
def test_evaluator_equals_a_plain_double_loop(make_source_block, params, predict_fns, tokenizer,
                                              build, evaluate, monkeypatch, batch_size, k,
                                              pairs_per_call, table_bytes):
    monkeypatch.setattr(pairs, "PAIRS_PER_CALL", pairs_per_call)
    monkeypatch.setattr(embeddings, "table_bytes", lambda: table_bytes)
    source = make_source_block(11)
    evaluator = build("retrieval", source, k=k, batch_size=batch_size)
    values = evaluate(evaluator, params, predict_fns)
    embeds, _ = evaluator.held_out.encode_images(Forward(params, predict_fns, make_mesh()))
    assert isinstance(embeds, np.ndarray) == (table_bytes == 1000)
    sims, i2t, t2i, text_image = plain_scores(params, predict_fns, source, tokenizer, k)
    expected = {f"itc_{name}": v for name, v in recalls(sims, sims.T, text_image).items()}
    assert values == pytest.approx(expected | recalls(i2t, t2i, text_image))
    assert len(values) == 14 and list(values)[-1] == "r_mean"
    assert list(values.values())[:7] != list(values.values())[7:]


def test_candidates_may_be_ordered_by_both_scores(make_source_block, params, predict_fns, tokenizer,
                                                  build, evaluate):
    """Log odds of a match and similarity over temperature; all pairs are candidates here."""
    source, cold = make_source_block(11), params | {"temp": 0.05}

    def odds(params, image_embeds, text_embeds, text_mask):
        logits = predict_fns["match"](params, image_embeds, text_embeds, text_mask)
        return jnp.stack([jnp.zeros(len(logits)), logits[:, 1] - logits[:, 0]], axis=-1)

    values = evaluate(build("retrieval", source, k=100, rank="sum"), cold, predict_fns)
    sims, match, _, text_image = plain_scores(params, predict_fns | {"match": odds}, source,
                                              tokenizer, 100)
    both = match + sims / 0.05
    expected = recalls(both, both.T, text_image)
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    plain = evaluate(build("retrieval", source, k=100), cold, predict_fns)
    assert plain["r_mean"] != values["r_mean"]


def test_several_depths_are_those_of_several_runs(make_source_block, params, predict_fns, build,
                                                  evaluate):
    def run(**options):
        return evaluate(build("retrieval", make_source_block(11), batch_size=4, **options), params,
                        predict_fns)

    together = run(k=5, ks=(2, 9))
    assert len(together) == 28 and list(together)[-1] == "r_mean"
    alone = {k: run(k=k) for k in (2, 5, 9)}
    assert {name: together[name] for name in alone[5]} == alone[5]
    for k in (2, 9):
        for name in list(alone[k])[7:]:
            assert together[f"{name}@{k}"] == alone[k][name]
    assert alone[2]["r_mean"] != alone[9]["r_mean"]


def test_second_run_compiles_nothing_and_sees_new_params(make_source_block, params, predict_fns,
                                                         build, evaluate):
    traces = []

    def counting_match(*args, **arrays):
        traces.append(1)
        return predict_fns["match"](*args, **arrays)

    evaluator = build("retrieval", make_source_block(9), k=3, batch_size=4)
    functions = predict_fns | {"match": counting_match}
    first = evaluate(evaluator, params, functions)
    traced = len(traces)
    other = evaluate(evaluator, jax.tree.map(np.flip, params), dict(functions))
    assert evaluate(evaluator, params, functions) == first != other
    assert len(traces) == traced > 0


def test_max_images_keeps_the_first_images_with_all_their_texts(make_source_block, params,
                                                                predict_fns, build, evaluate,
                                                                tmp_path):
    source = make_source_block(11)
    with np.load(source["path"]) as arrays:
        np.savez(tmp_path / "first.npz", image=arrays["image"][:6], caption=arrays["caption"][:6])
    runs = []
    for block, options in ((source, dict(max_images=6)),
                           (dict(kind="arrays", path=str(tmp_path / "first.npz")), {})):
        evaluator = build("retrieval", block, k=3, **options)
        assert evaluator.description == "6 images, 12 texts, the best 3 re-ranked"
        runs.append(evaluate(evaluator, params, predict_fns))
    assert runs[0] == runs[1]


def test_rows_of_one_image_are_merged_and_max_images_counts_images(tmp_path, build):
    np.savez(tmp_path / "rows.npz", image=np.zeros((5, 16, 16, 3), np.uint8),
             caption=np.array(["red dog", "blue cat", "boat", "bird", "house"]),
             image_id=np.array([4, 5, 4, 6, 5]))
    source = dict(kind="arrays", path=str(tmp_path / "rows.npz"))
    for max_images, counts in ((0, "3 images, 5 texts"), (2, "2 images, 4 texts")):
        assert build("retrieval", source, max_images=max_images).description.startswith(counts)


def test_no_progress_bar_off_a_terminal(make_source_block, params, predict_fns, build, evaluate,
                                        capfd):
    evaluate(build("retrieval", make_source_block(4), k=2), params, predict_fns)
    assert capfd.readouterr() == ("", "")
