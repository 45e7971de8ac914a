"""The ring buffers of momentum features."""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.objectives.contrastive import enqueue, init_queue


def test_a_new_queue_holds_unit_vectors():
    queue = init_queue(jax.random.key(0), 50, 8)
    assert queue.shape == (50, 8)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=-1), 1.0, rtol=1e-6)
    assert np.abs(np.mean(queue)) < 0.1  # in all directions


def test_the_oldest_rows_are_overwritten():
    queue, ids = jnp.zeros((6, 3)), jnp.full(6, -1)
    for turn, pointer in enumerate((2, 4, 0), start=1):
        queue = enqueue(queue, jnp.full((2, 3), turn), pointer)
        ids = enqueue(ids, jnp.array([10 * turn, 10 * turn + 1]), pointer)
    np.testing.assert_array_equal(queue[:, 0], [3, 3, 1, 1, 2, 2])
    np.testing.assert_array_equal(ids, [30, 31, 10, 11, 20, 21])


def test_the_pointer_wraps(tiny_run):
    """Batches of 16 rows in a queue of 64: the fifth is where the first was."""
    task, _, state, _ = tiny_run("batch_size=8", "objective.positives=image")
    memory = state.memory
    assert np.all(memory["id_queue"] == -1)
    for turn in range(6):
        rows = {"image_queue": jnp.full((16, 16), turn), "text_queue": jnp.full((16, 16), -turn),
                "id_queue": jnp.full(16, turn)}
        memory = task.update_memory(memory, rows)
    assert memory["pointer"] == 32
    turns = np.repeat([4, 5, 2, 3], 16)
    np.testing.assert_array_equal(memory["id_queue"], turns)
    np.testing.assert_array_equal(memory["image_queue"][:, 3], turns)
    np.testing.assert_array_equal(memory["text_queue"][:, 3], -turns)
    assert memory["id_queue"].dtype == jnp.int32
