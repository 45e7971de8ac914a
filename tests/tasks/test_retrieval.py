"""The retrieval task beyond its golden case: groups, queue, ids and what the config may say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.errors import UserError

SCHEDULE = {"alpha_itc": 0.4}


def test_ids_are_remembered_and_the_temperature_is_free(tiny_run):
    """Positives are by image, and 0.7 is beyond pre-training's clamp."""
    task, _, state, batch = tiny_run("task=retrieval", "objective.temperature=0.7")
    group = {name: rows[:8] for name, rows in batch.items()}
    group["image_id"] = jnp.arange(8, dtype=jnp.int32) // 2
    params = task.prepare(state.params)
    _, aux = jax.jit(lambda: task.loss(params, state.teacher, state.memory, group,
                                       jax.random.key(0), SCHEDULE))()
    metrics, memory = aux.metrics, task.update_memory(state.memory, aux.enqueue)
    assert np.isfinite(metrics["loss"])
    np.testing.assert_allclose(metrics["loss"], metrics["itc"] + metrics["itm"], rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature"], 0.7)
    np.testing.assert_array_equal(memory["id_queue"][:8], np.arange(8) // 2)
    np.testing.assert_array_equal(memory["id_queue"][8:], -1)
    np.testing.assert_allclose(np.linalg.norm(memory["text_queue"], axis=1), 1, rtol=1e-5)
    assert memory["pointer"] == 8
    assert "head" not in params["text_encoder"] and "mlm" not in metrics


def test_without_a_queue_no_negative_has_the_same_image(tiny_run):
    task, _, state, batch = tiny_run("task=retrieval", "objective.queue_size=0")
    assert state.memory == {}
    group = {name: rows[:8] for name, rows in batch.items()}
    group["image_id"] = jnp.array([0, 0, 0, 1, 1, 2, 2, 2], jnp.int32)

    @jax.jit
    def negatives(key):
        _, aux = task.loss(state.params, state.teacher, {}, group, key, SCHEDULE)
        return aux.record["negatives"], aux.record["itc"]["i2t_targets"], aux.enqueue

    ids, seen = np.asarray(group["image_id"]), set()
    for seed in range(20):
        drawn, targets, enqueue = negatives(jax.random.key(seed))
        for other in drawn.values():
            assert (ids[np.asarray(other)] != ids).all()
            seen.update(np.asarray(other).tolist())
    assert seen == set(range(8)) and enqueue == {}
    # 0.6 of the targets is spread evenly over the texts of the image.
    same = ids[:, None] == ids[None]
    assert (np.asarray(targets)[same] >= 0.6 / same.sum(1)[np.nonzero(same)[0]] - 1e-6).all()


def test_retrieval_needs_similarities(tiny_run):
    with pytest.raises(UserError, match="config.objective.itc does not exist"):
        tiny_run("task=retrieval", "objective.itc=False")
