"""Texts without padding: the same values and gradients at real tokens, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.models.bert import Bert
from albef_jax.models.packing import Packing, budget, overflow
from albef_jax.models.stack import Stacking

MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])  # 11 of 20


def test_there_and_back():
    """Real tokens in their order, nothing in the rest of the list, zeros at padding."""
    packing = Packing.of(MASK, 0.7)
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))
    packed = packing.pack(x)
    assert packed.shape == (14, 3) == (budget(20, 0.7), 3)
    np.testing.assert_array_equal(packed[:11], x[MASK == 1])
    np.testing.assert_array_equal(packed[11:], 0)
    np.testing.assert_array_equal(packing.unpack(packed), x * MASK[..., None])


def test_gradients_go_the_way_back():
    packing = Packing.of(MASK, 0.7)
    x, weights = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))

    def both(x):
        return jnp.sum(weights * packing.unpack(jnp.sin(packing.pack(x))) ** 2)

    def plain(x):
        return jnp.sum(weights * MASK[..., None] * jnp.sin(x) ** 2)

    np.testing.assert_allclose(jax.grad(both)(x), jax.grad(plain)(x), atol=1e-6)


@pytest.mark.parametrize("share, left_out", [(0.0, 0), (0.5, 1), (0.3, 5), (0.55, 0), (1.0, 0)])
def test_what_does_not_fit_is_counted(share, left_out):
    assert overflow(MASK, share) == left_out


def test_tokens_without_room_come_back_as_zeros():
    packing = Packing.of(MASK, 0.5)
    back = packing.unpack(packing.pack(jnp.ones((4, 5, 1))))[..., 0]
    expected = MASK.copy()
    expected[3, 1] = 0  # the last real token of eleven
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("scan", [False, True])
def test_both_encoders(scan):
    """States of real tokens and gradients of all parameters, dropout being off."""
    def bert(share):
        return Bert(vocab_size=30, max_positions=8, width=16, text_layers=2, fusion_layers=3,
                    heads=2, mlp_width=32, dropout=0.0, attention_dropout=0.0, text_budget=share,
                    stacking=Stacking(scan=scan))

    ids = np.where(MASK, np.random.default_rng(0).integers(1, 30, MASK.shape), 0)
    image = jax.random.normal(jax.random.key(1), (4, 7, 16))
    swap = np.array([1, 0, 3, 2])
    masks = np.stack([MASK, MASK[swap], MASK])
    weights = jax.random.normal(jax.random.key(2), (4, 5, 16)) * MASK[..., None]

    def both(model, ids):
        x = model.encode(ids, MASK, deterministic=False)
        words, cls = model.fuse_for_losses(jnp.stack([x, x[swap], x]), masks, image, swap,
                                           np.array([0, 2, 6]), deterministic=False)
        return x, words, cls

    def loss(params, share):
        x, words, cls = bert(share).apply({"params": params}, ids, method=both,
                                          rngs={"dropout": jax.random.key(3)})
        return jnp.sum(x * weights) + jnp.sum(jnp.sin(words)) + jnp.sum(jnp.sin(cls)), (words, cls)

    def init(model):
        x = model.encode(ids, MASK)
        return model.predict_words(model.fuse(x[None], MASK[None], image))

    params = bert(0.0).init(jax.random.key(0), method=init)["params"]
    with jax.default_matmul_precision("highest"):
        grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
        (value, states), grads = grad(params, 0.0)
        (other, others), other_grads = grad(params, 0.7)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
                 (states, grads), (others, other_grads))


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_a_task_counts_what_does_not_fit(tiny_run, task):
    """Without dropout the losses are those of all positions; a short list is noticed."""
    def metrics(share):
        task_, _, state, batch = tiny_run(
            f"task={task}", f"objective.text_budget={share}", "model.dropout=0.0",
            "model.attention_dropout=0.0")
        group = {name: rows[:8] for name, rows in batch.items()}
        return jax.jit(lambda: task_.loss(state.params, state.teacher, state.memory, group,
                                          jax.random.key(0), task_.schedule(0)))()[1].metrics

    whole, packed, short = metrics(0.0), metrics(0.95), metrics(0.2)
    assert "text_overflow_per_group" not in whole and packed["text_overflow_per_group"] == 0
    assert short["text_overflow_per_group"] > 0
    np.testing.assert_allclose(packed["loss"], whole["loss"], rtol=2e-6)
