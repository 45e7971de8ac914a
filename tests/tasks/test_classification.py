"""Entailment and NLVR2: the distilled loss by its formula, and when the teacher is asked."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.tasks import make_task

CONFIG = Path(__file__).parents[1] / "tiny.py"


def first_group(batch):
    return {name: rows[:8] for name, rows in batch.items()}


@functools.partial(jax.jit, static_argnums=0)
def loss_of(task, params, teacher, group, alpha):
    """The loss, its metrics and record."""
    total, aux = task.loss(params, teacher, {}, group, jax.random.key(0), {"alpha": alpha})
    return total, aux.metrics, aux.record


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", ["ve", "nlvr"])
def test_distilled_loss(tiny_run, name):
    task, _, state, batch = tiny_run(f"task={name}")
    group = first_group(batch)
    teacher = jax.tree.map(lambda x: 1.1 * x, state.teacher)
    total, metrics, record = loss_of(task, state.params, teacher, group, 0.3)
    online, soft = (log_softmax(record[key]) for key in ("logits", "teacher_logits"))
    label = np.asarray(group["label"])
    hard = -online[np.arange(8), label].mean()
    expected = 0.7 * hard - 0.3 * (np.exp(soft) * online).sum(axis=1).mean()
    assert abs(expected - hard) > 1e-4
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(online.argmax(1) == label))
    assert metrics["loss"] == total


def test_without_alpha_the_teacher_is_not_asked(tiny_run):
    """A teacher of NaN: it would show in the loss, and does where alpha is not 0."""
    task, _, state, batch = tiny_run("task=ve")
    plain, *_ = tiny_run("task=ve", "objective.alpha=0")
    broken = jax.tree.map(lambda x: jnp.nan * x, state.teacher)
    group = first_group(batch)
    assert np.isnan(loss_of(task, state.params, broken, group, 0.4)[0])
    total, _, record = loss_of(plain, state.params, broken, group, 0.0)
    assert np.isfinite(total) and "teacher_logits" not in record
    without = loss_of(task, state.params, state.teacher, group, 0.0)[0]
    np.testing.assert_allclose(total, without, rtol=1e-6)


def test_alpha_may_rise_or_stay():
    rising, constant = (make_task(load_config(CONFIG, [
        "--config.task=ve", f"--config.objective.alpha_ramp_steps={steps}"])) for steps in (10, 0))
    assert [round(float(rising.schedule(i)["alpha"]), 3) for i in (0, 5, 99)] == [0.0, 0.2, 0.4]
    assert float(constant.schedule(0)["alpha"]) == pytest.approx(0.4)


def test_nlvr_reads_both_images_and_their_order(tiny_run):
    task, _, state, batch = tiny_run("task=nlvr")
    classify = jax.jit(task.predict_fns()["classify"])
    group = first_group(batch)
    image, text = group["image"], (group["text_ids"], group["text_mask"])
    assert image.shape[:2] == (8, 2)
    logits = classify(state.params, image, *text)
    assert logits.shape == (8, 2) and logits.dtype == jnp.float32
    for changed in (image[:, ::-1], image.at[:, 0].set(0), image.at[:, 1].set(0)):
        assert np.abs(logits - classify(state.params, changed, *text)).min() > 1e-7
