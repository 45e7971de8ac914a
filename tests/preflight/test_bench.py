"""`albef bench`: a random batch fits every task; the parts of a retrieval evaluation."""

from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.preflight.bench import random_batch
from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.tasks import TASKS, make_task

TINY = Path(__file__).parents[1] / "tiny.py"


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


def test_the_parts_of_a_retrieval_evaluation(capsys):
    sizes = ["--images", "6", "--texts", "14", "--k", "2", "--batch-size", "8"]
    assert main(["bench", "--retrieval", "--config", str(TINY), *sizes]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("6 images, 14 texts, k=2, batch 8, float32 on 1 x cpu")
    rows = dict(re.findall(r"^(\w[\w ,]*?) {2,}([\d.]+)", printed, re.MULTILINE))
    seconds = [float(rows[name]) for name in (
        "encode images", "encode texts", "similarities and candidates", "recalls by similarity",
        "scores of candidates", "recalls of candidates")]
    assert sum(seconds) == pytest.approx(float(rows["total"]), abs=0.01) and min(seconds) >= 0
    # Two of each image and two of each text, some of them the same.
    assert 2 * 14 <= int(rows["pairs"]) <= 2 * 6 + 2 * 14
    assert 0 < float(rows["scores, compute alone"])
