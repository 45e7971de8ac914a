"""`albef bench`: a random batch fits every task."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.bench import random_batch
from albef_jax.config import load_config
from albef_jax.tasks import TASKS, make_task

TINY = Path(__file__).with_name("tiny.py")


@pytest.mark.parametrize("name", TASKS)
def test_a_random_batch_fits_every_task(name):
    config = load_config(TINY, [f"--config.task={name}"])
    task, batch = make_task(config), random_batch(config)
    assert set(task.needs) <= {"label", "answers"}
    group = {key: jnp.asarray(value[:config.group_size]) for key, value in batch.items()}

    def loss(rng):
        params, memory = task.init(rng), task.init_memory(rng)
        return task.loss(params, task.teacher_of(params), memory, group, rng, task.schedule(0))

    total, aux = jax.eval_shape(loss, jax.random.key(0))
    assert total.shape == () and "loss" in aux.metrics
    texts = [("text_ids", "text_mask"), ("answer_ids", "answer_mask")]
    for ids, mask in ((batch[i], batch[m]) for i, m in texts if i in batch):
        assert (ids[..., 0] == config.model.cls_id).all() and (mask[..., 0] == 1).all()
        assert ((ids == config.model.pad_id) == (mask == 0)).all()
        assert (np.diff(mask, axis=-1) <= 0).all()  # padded on the right
