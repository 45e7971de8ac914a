"""Switches of the pre-training task that the golden cases do not turn."""

import jax
import numpy as np


def test_without_a_queue_the_group_has_all_candidates(tiny_run):
    task, _, state, batch = tiny_run("objective.queue_size=0", "objective.positives=image")
    assert state.memory == {}
    group = {name: rows[:8] for name, rows in batch.items()}
    group["image_id"] = group["image_id"].at[1].set(group["image_id"][0])
    schedule = {"alpha_itc": 0.0, "alpha_mlm": 0.0}
    _, aux = jax.jit(lambda: task.loss(state.params, state.teacher, {}, group, jax.random.key(0),
                                       schedule))()
    logits = np.asarray(aux.record["itc"]["i2t"], np.float64)
    assert logits.shape == (8, 8)
    # InfoNCE over the group, the two rows of one image being positives of each other.
    truth = np.eye(8)
    truth[:2, :2] = 0.5
    reverse = np.asarray(aux.record["itc"]["t2i"], np.float64)
    expected = -np.mean([(truth * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1).mean()
                         for x in (logits, reverse)])
    np.testing.assert_allclose(aux.metrics["itc"], expected, rtol=1e-5)
    assert aux.enqueue == {} and task.update_memory({}, aux.enqueue) == {}


def test_a_true_pair_may_weigh_as_much_as_its_negatives(tiny_run):
    """The loss is the mean of the two kinds, written out from the logits; and what it is blind."""
    task, _, state, batch = tiny_run("objective.match_weight=2.0")
    group = {name: rows[:8] for name, rows in batch.items()}
    _, aux = jax.jit(lambda: task.loss(state.params, state.teacher, state.memory, group,
                                       jax.random.key(0), task.schedule(0)))()
    shares = jax.nn.log_softmax(aux.record["itm"]["logits"])
    expected = -(shares[0, :, 1].mean() + shares[1:, :, 0].mean()) / 2
    np.testing.assert_allclose(aux.metrics["itm"], expected, rtol=1e-5)


def test_negatives_are_random_first_and_hard_later(tiny_run):
    """At the first step those of `negatives='random'`, after `random_steps` those of 'hard'."""
    def drawn(step, *overrides):
        task, _, state, batch = tiny_run(*overrides)
        group = {name: rows[:8] for name, rows in batch.items()}
        _, aux = jax.jit(lambda: task.loss(state.params, state.teacher, state.memory, group,
                                           jax.random.key(0), task.schedule(step)))()
        return aux.record["negatives"], aux.metrics.get("random_negatives")

    ramp = "objective.random_steps=40", "objective.random_negatives=0.25"
    random, _ = drawn(0, "objective.negatives=random")
    hard, unsaid = drawn(0)
    first, share = drawn(0, *ramp)
    jax.tree.map(np.testing.assert_array_equal, first, random)
    assert share == 1.0 and unsaid is None
    assert drawn(20, *ramp)[1] == 0.5 and drawn(100, *ramp)[1] == 0.25
    last, _ = drawn(40, ramp[0])
    jax.tree.map(np.testing.assert_array_equal, last, hard)
    assert any((random[name] != hard[name]).any() for name in hard)
