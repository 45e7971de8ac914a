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
