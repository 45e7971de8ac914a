"""The VQA task: weights, empty slots, distillation, ranking and writing."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.tasks.vqa import Vqa

TESTS = Path(__file__).parents[1]
B, LENGTH, PAD, CLS, SEP = 4, 5, 0, 2, 3


def tiny_config(*overrides):
    """tests/tiny.py, narrower and without dropout."""
    return load_config(TESTS / "tiny.py", [f"--config.{value}" for value in (
        "task=vqa", "model.text_width=16", "model.vit_width=16", "model.text_mlp_width=32",
        "model.dropout=0.0", "model.attention_dropout=0.0", *overrides)])


@pytest.fixture(scope="module")
def run():
    """Task, parameters, a teacher, and a group of questions with up to two answers."""
    task = Vqa(tiny_config())
    params, teacher = (jax.jit(task.init)(jax.random.key(i)) for i in (0, 1))
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 99, (B, 2, LENGTH)).astype(np.int32)
    ids[..., 0], ids[..., 3], ids[..., 4] = CLS, SEP, PAD
    ids[..., 1] = np.arange(10, 10 + 2 * B).reshape(B, 2)  # none share their first word
    group = {"image": rng.integers(0, 256, (B, 32, 32, 3), np.uint8),
             "text_ids": rng.integers(5, 99, (B, 6)).astype(np.int32),
             "text_mask": np.ones((B, 6), np.int32), "answer_ids": ids,
             "answer_mask": (ids != PAD).astype(np.int32),
             "answer_weight": np.array([[1, 0], [.5, .5], [.7, .3], [.5, 0]], np.float32)}
    return task, params, teacher, jax.tree.map(jnp.asarray, group)


@pytest.fixture(scope="module")
def loss(run):
    task, params, _, _ = run
    compiled = jax.jit(lambda teacher, group, alpha: task.loss(
        params, teacher, {}, group, jax.random.key(3), {"alpha": alpha}))
    return lambda teacher, group, alpha=0.4: compiled(teacher, group, alpha)


@pytest.fixture(scope="module")
def states(run):
    task, params, _, group = run
    return jax.jit(task.predict_fns()["encode"])(
        params, group["image"], group["text_ids"], group["text_mask"])


def log_probs(run, ids_sbl, states):
    """Log probabilities `[s, b, l, v]` of the next words by the decoder without a cache."""
    task, params, _, group = run

    def words(model, *args):
        return model.text_decoder.predict_words(model.text_decoder(*args))

    return np.asarray(jax.nn.log_softmax(jax.jit(lambda *args: task.model.apply(
        {"params": params}, *args, method=words))(
            ids_sbl, jnp.ones_like(ids_sbl), states, group["text_mask"])), np.float64)


def test_the_loss_is_the_weighted_sum_over_answers(run, loss, states):
    task, _, teacher, group = run
    total, aux = loss(teacher, group, 0.0)
    ids_abl = np.moveaxis(np.asarray(group["answer_ids"]), 1, 0)
    words = np.take_along_axis(log_probs(run, jnp.asarray(ids_abl), states)[:, :, :-1],
                               ids_abl[:, :, 1:, None], axis=-1)[..., 0]
    expected_ab = -(words * (ids_abl[:, :, 1:] != PAD)).sum(-1)
    np.testing.assert_allclose(aux.record["losses_ab"], expected_ab, rtol=1e-5)
    weights = np.asarray(group["answer_weight"])
    np.testing.assert_allclose(total, (weights.T * expected_ab).sum() / B, rtol=1e-5)
    assert aux.enqueue == {} and task.update_memory({}, {}) == task.init_memory(None) == {}


def test_empty_slots_and_padding_do_not_count(run, loss):
    _, _, teacher, group = run
    garbled = group["answer_ids"].at[0, 1, 1:].set(7).at[:, :, 4].set(9)
    expected, _ = loss(teacher, group)
    total, _ = loss(teacher, group | {"answer_ids": garbled})
    assert total == expected
    moved, _ = loss(teacher, group | {"answer_ids": garbled.at[2, 1, 2].add(1)})
    assert moved != expected


def test_distillation_reads_the_teacher(run, loss):
    task, params, teacher, group = run
    hard, with_teacher, all_teacher = (loss(teacher, group, a)[0] for a in (0.0, 0.4, 1.0))
    np.testing.assert_allclose(with_teacher, 0.6 * hard + 0.4 * all_teacher, rtol=1e-5)
    assert loss(params, group, 1.0)[0] < all_teacher  # its own predictions are nearer
    assert task.teacher_of(params).keys() == params.keys()


def test_without_distillation_no_teacher_is_computed(run, loss):
    _, params, teacher, group = run
    task = Vqa(tiny_config("objective.alpha=0.0"))
    total, aux = jax.jit(lambda: task.loss(  # an empty teacher: any use of it would fail
        params, {}, {}, group, jax.random.key(3), task.schedule(5)))()
    assert aux.record["momentum"] is None and aux.metrics["alpha"] == 0
    np.testing.assert_allclose(total, loss(teacher, group, 0.0)[0], rtol=1e-6)


def test_answer_accuracy(run, loss, states):
    _, _, teacher, group = run
    likeliest = log_probs(run, group["answer_ids"][:, 0][None], states)[0].argmax(-1)
    # A first word that is certainly the likeliest one, then [SEP] where the model agrees or not.
    ids = np.array(group["answer_ids"])
    ids[:, 0, 1], ids[:, 0, 2:] = likeliest[:, 0], PAD
    mask = (ids != PAD).astype(np.int32)
    weight = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    _, aux = loss(teacher, group | {"answer_ids": jnp.asarray(ids), "answer_mask": mask,
                                    "answer_weight": weight})
    assert aux.metrics["answer_accuracy"] == pytest.approx(3 / 4)


def test_ranking(run, states):
    task, params, _, group = run
    candidates = tuple(np.asarray(group[name]).reshape(2 * B, LENGTH)
                       for name in ("answer_ids", "answer_mask"))
    ids_sbl = jnp.tile(jnp.asarray(candidates[0])[:, None], (1, B, 1))
    words = np.take_along_axis(log_probs(run, ids_sbl, states)[:, :, :-1],
                               np.asarray(ids_sbl)[:, :, 1:, None], axis=-1)[..., 0]
    first_bc = words[:, :, 0].T
    likelihood_bc = (words * candidates[1][:, None, 1:]).sum(-1).T
    for twice in (False, True):
        chosen, scores = jax.jit(task.rank, static_argnums=(4, 5))(
            params, states, group["text_mask"], candidates, 3, twice)
        for row in range(B):
            best = np.argsort(-first_bc[row])[:3]
            expected = likelihood_bc[row, best] + twice * first_bc[row, best]
            order = np.argsort(-expected)
            assert list(chosen[row]) == list(best[order])
            np.testing.assert_allclose(scores[row], expected[order], rtol=1e-5)


def test_greedy_with_a_cache_is_greedy_without(run, states):
    task, params, _, group = run
    ids, scores = jax.jit(task.generate, static_argnums=(3, 4, 5))(
        params, states, group["text_mask"], SEP, LENGTH, 1)
    plain = np.full((B, LENGTH), PAD, np.int32)
    plain[:, 0], total, ended = CLS, np.zeros(B), np.zeros(B, bool)
    for i in range(LENGTH - 1):
        words = log_probs(run, jnp.asarray(plain)[None], states)[0, :, i]
        best = np.where(ended, PAD, words.argmax(-1))
        total += np.where(ended, 0, words.max(-1))
        plain[:, i + 1], ended = best, ended | (best == SEP)
    np.testing.assert_array_equal(ids[:, 0], plain)
    np.testing.assert_allclose(scores[:, 0], total, rtol=1e-5)


def test_wide_beams_find_the_likeliest_text(run, states):
    """Over texts of two words after [CLS], as many beams as words miss nothing."""
    task, params, _, group = run
    vocab = task.model.config.vocab_size
    ids, scores = jax.jit(task.generate, static_argnums=(3, 4, 5))(
        params, states, group["text_mask"], SEP, 3, vocab)
    prefixes = np.zeros((vocab, B, 2), np.int32)
    prefixes[:, :, 0], prefixes[:, :, 1] = CLS, np.arange(vocab)[:, None]
    words = log_probs(run, jnp.asarray(prefixes), states)
    first, second = words[0, :, 0], words[:, :, 1]
    joint = first.T[:, :, None] + second  # [first word, question, second word]
    joint[SEP] = -np.inf
    for row in range(B):
        best = max(joint[:, row].max(), first[row, SEP])
        assert scores[row, 0] == pytest.approx(best, rel=1e-5)
        assert np.all(np.diff(scores[row]) <= 0)
        texts = {tuple(text) for text in np.asarray(ids[row])}
        assert len(texts) == vocab  # no text twice


def test_fresh_weights_follow_init_std(run):
    task, params, _, _ = run
    assert params.keys() == {"visual_encoder", "text_encoder", "text_decoder"}
    words = params["text_decoder"]["embeddings"]["word"]
    assert np.std(words) == pytest.approx(task.model.config.init_std, rel=0.1)
