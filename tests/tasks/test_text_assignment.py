"""Text assignment: which pairs of images are drawn, and what the loss makes of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import check_config, load_config
from albef_jax.errors import UserError
from albef_jax.tasks.text_assignment import (
    FIRST,
    NEITHER,
    SECOND,
    AssignmentDraws,
    draw_pairs,
)

DRAWS = 4000
TINY = Path(__file__).parents[1] / "tiny.py"


def drawn(weights_bb):
    """Many draws, each field `[DRAWS, b]`."""
    keys = jax.random.split(jax.random.key(3), DRAWS)
    return AssignmentDraws(*map(np.asarray, jax.jit(jax.vmap(draw_pairs, (0, None)))(
        keys, weights_bb)))


def test_pairs_follow_the_recipe():
    """One third each; negatives by weight, without the own one, and never the same twice."""
    weights = jnp.array([[0, 0.5, 0.3, 0.2], [0.1, 0, 0.1, 0.8], [0.25, 0.7, 0, 0.05],
                         [0.4, 0.4, 0.2, 0]])
    first, second, label = drawn(weights)
    own = np.arange(4)
    for one in (FIRST, SECOND, NEITHER):
        np.testing.assert_allclose((label == one).mean(axis=0), 1 / 3, atol=0.03)
    np.testing.assert_array_equal(first == own, label == FIRST)
    np.testing.assert_array_equal(second == own, label == SECOND)
    assert (first != second).all()
    negative = np.where(label == FIRST, second, first)
    for row in range(4):
        share = np.bincount(negative[:, row], minlength=4) / DRAWS
        np.testing.assert_allclose(share, weights[row], atol=0.03)
    rest = (label[:, 0] == NEITHER) & (first[:, 0] == 1)  # then by the weights of 2 and 3
    np.testing.assert_allclose((second[rest, 0] == 2).mean(), 0.6, atol=0.08)


def test_a_single_possible_negative_is_never_drawn_twice():
    _, _, label = drawn(jnp.array([[0, 1, 0], [0.5, 0, 0.5], [0.5, 0.5, 0]]))
    np.testing.assert_allclose((label[:, 0] == FIRST).mean(), 0.5, atol=0.03)
    assert NEITHER not in label[:, 0] and NEITHER in label[:, 1]


def test_images_with_the_same_id_are_no_negatives_of_each_other(tiny_run):
    """Rows 0 and 1 show one image; in the second group all do, and nothing is learned."""
    task, _, state, batch = tiny_run("task=nlvr_pretrain")
    group = {name: rows[:8] for name, rows in batch.items()}

    @jax.jit
    def run(ids):
        total, aux = task.loss(state.params, {}, {}, {**group, "image_id": ids},
                               jax.random.key(0), {})
        return total, aux.metrics, aux.record

    ids = jnp.arange(8).at[1].set(0)
    total, _, record = run(ids)
    weights = np.asarray(record["weights"])
    assert weights[0, 1] == weights[1, 0] == 0 and (np.diag(weights) == 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    similarity = np.exp(np.asarray(record["similarity"], np.float64))[0] * (np.array(ids) != 0)
    np.testing.assert_allclose(weights[0], similarity / similarity.sum(), rtol=1e-4)
    assert total > 0
    total, metrics, _ = run(jnp.zeros(8, jnp.int32))
    assert total == 0 and metrics["accuracy"] == 0


def test_groups_of_two_are_refused():
    with pytest.raises(UserError, match="group_size is 2; text assignment .* at least 3"):
        check_config(load_config(TINY, ["--config.task=nlvr_pretrain", "--config.group_size=2"]))


def test_negatives_are_drawn_by_a_fixed_temperature(tiny_run):
    """Whatever temperature the weights bring: the public code divides by 0.07."""
    task, _, state, batch = tiny_run("task=nlvr_pretrain")
    group = {name: rows[:8] for name, rows in batch.items()}
    run = jax.jit(lambda temp: task.loss({**state.params, "temp": temp}, {}, {}, group,
                                         jax.random.key(0), {})[1].record)
    one, other = run(jnp.float32(0.07)), run(jnp.float32(0.5))
    feats = np.asarray(one["image_feat"], np.float64)
    np.testing.assert_allclose(one["similarity"], feats @ feats.T / 0.07, rtol=1e-4)
    np.testing.assert_array_equal(one["similarity"], other["similarity"])
