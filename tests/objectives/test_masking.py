"""MLM: the masking recipe, the budget, and the view-based form of the loss.

Shares are held against 5 standard deviations of their binomial.
"""

from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.models.bert import Bert
from albef_jax.objectives.distillation import distilled_cross_entropy
from albef_jax.objectives.masking import (
    default_budget,
    draw_masking,
    mask_tokens,
    masked_positions,
    weighted_mean,
)

PAD, CLS, SEP, MASK, VOCAB = 0, 2, 3, 4, 1000
IDS = dict(pad_id=PAD, cls_id=CLS, mask_id=MASK)


@pytest.fixture
def texts():
    """[CLS] words [PAD], of 10 to 40 tokens; words are 500 and above."""
    rng = np.random.default_rng(0)
    ids = rng.integers(500, VOCAB, (2000, 40))
    ids = np.where(np.arange(40) < rng.integers(10, 41, (2000, 1)), ids, PAD)
    ids[:, 0] = CLS
    return jnp.asarray(ids, jnp.int32)


def assert_share(count, total, expected):
    deviation = np.sqrt(total * expected * (1 - expected))
    assert abs(count - total * expected) <= 5 * deviation + 1e-9


@pytest.mark.parametrize("rate, replace", [
    (0.15, (0.8, 0.1, 0.1)), (0.15, (1, 0, 0)), (0.5, (0.2, 0.6, 0.2)), (0.3, (0, 0, 1))])
def test_shares_of_the_recipe(texts, rate, replace):
    draws = draw_masking(jax.random.key(1), texts.shape, VOCAB, rate, replace)
    masked, predicted = map(np.asarray, mask_tokens(texts, draws, **IDS))
    ids, is_word = np.asarray(texts), np.asarray(texts) >= 500
    np.testing.assert_array_equal(masked[~predicted], ids[~predicted])
    count = predicted.sum()
    assert_share(count, is_word.sum(), rate)
    assert_share((masked[predicted] == MASK).sum(), count, replace[0] + replace[1] / VOCAB)
    kept = (masked == ids)[predicted].sum()
    assert_share(kept, count, replace[2] + replace[1] / VOCAB)
    # Random words are any of the vocabulary, not only those of captions.
    strange = masked[predicted & (masked < 500) & (masked != MASK)]
    assert_share(len(strange), count, replace[1] * 499 / VOCAB)


def test_the_paper_writes_nothing_but_mask(texts):
    draws = draw_masking(jax.random.key(1), texts.shape, VOCAB, 0.15, (1, 0, 0))
    masked, predicted = mask_tokens(texts, draws, **IDS)
    assert np.all(np.asarray(masked)[np.asarray(predicted)] == MASK)


def test_padding_and_cls_are_never_predicted_and_sep_is(texts):
    texts = texts.at[:, 1].set(SEP)
    draws = draw_masking(jax.random.key(2), texts.shape, VOCAB, 1.0)
    masked, predicted = map(np.asarray, mask_tokens(texts, draws, **IDS))
    special = np.isin(texts, (PAD, CLS))
    np.testing.assert_array_equal(predicted, ~special)
    np.testing.assert_array_equal(masked[special], np.asarray(texts)[special])


def test_draws_are_a_function_of_the_key():
    one, same, other = (draw_masking(jax.random.key(k), (50, 20), VOCAB) for k in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, same))
    assert all(not np.array_equal(a, b) for a, b in zip(one, other))


def test_budget_lists_positions_and_counts_what_does_not_fit():
    predicted = jnp.array([[0, 1, 0, 1], [0, 0, 1, 1]], bool)
    positions, weights, overflow = masked_positions(predicted, 6)
    np.testing.assert_array_equal(positions, [1, 3, 6, 7, 0, 0])
    np.testing.assert_array_equal(weights, [1, 1, 1, 1, 0, 0])
    assert overflow == 0
    positions, weights, overflow = masked_positions(predicted, 3)
    np.testing.assert_array_equal(positions, [1, 3, 6])
    np.testing.assert_array_equal(weights, 1)
    assert overflow == 1


def test_default_budget_is_hardly_ever_exceeded():
    """64 full texts: a mean plus six deviations, and never more than there are words."""
    budget = default_budget(64, 25)
    assert 64 * 24 * 0.15 < budget < 64 * 24 * 0.3
    draws = draw_masking(jax.random.key(0), (500, 64, 24), VOCAB)
    assert np.max(np.sum(draws.chosen, axis=(1, 2))) <= budget
    assert default_budget(2, 5, rate=1.0) == 8


def test_mean_of_nothing_is_zero():
    value, grad = jax.value_and_grad(weighted_mean)(jnp.arange(3.0), jnp.zeros(3))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_mlm_is_the_view_based_form(tiny_run):
    """ALBEF.md J04: -log(exp(psi(y) f) / sum over words), psi the word embeddings.

    f is the state under the head's transform; the decoder's bias starts at 0.
    """
    task, _, state, _ = tiny_run()
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(7, 32)).astype(np.float32), rng.integers(0, 100, 7)
    head = jax.tree.map(np.float64, state.params["text_encoder"]["head"])
    psi = np.float64(state.params["text_encoder"]["embeddings"]["word"])
    x = states @ head["dense"]["kernel"] + head["dense"]["bias"]
    x = x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    f = x * head["norm"]["scale"] + head["norm"]["bias"]
    expected = [-np.log(np.exp(psi[y] @ row) / sum(np.exp(word @ row) for word in psi))
                for y, row in zip(labels, f)]
    logits = task.apply(state.params, Bert.predict_words, states, part="text_encoder")
    ours = distilled_cross_entropy(logits, labels, jnp.zeros_like(logits), 0.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
