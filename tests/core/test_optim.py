"""AdamW's decay mask and the schedules; the update itself is in the golden pretrain_train."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.core.optim import decay_mask, make_optimizer, make_schedule
from albef_jax.tasks import make_task

RECORDED = json.loads(
    (Path(__file__).parents[1] / "golden" / "lr_schedule" / "schedules.json").read_text())


def test_biases_and_norms_do_not_decay():
    """As the public code: vectors called bias or a norm's scale; [CLS], temperature, words do."""
    shapes = jax.eval_shape(make_task(default_config()).init, jax.random.key(0))
    mask = decay_mask(shapes)
    exempt = {path[-1].key for path, decays in jax.tree_util.tree_leaves_with_path(mask)
              if not decays}
    assert exempt == {"bias", "scale"}
    kept = {jax.tree_util.keystr(path, simple=True, separator="/")
            for path, decays in jax.tree_util.tree_leaves_with_path(mask) if decays}
    assert {"temp", "visual_encoder/cls_token", "visual_encoder/pos_embed",
            "text_encoder/embeddings/word"} <= kept
    small = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in
             jax.tree_util.tree_leaves_with_path(shapes) if leaf.ndim == 1}
    assert not small & kept


def test_update_is_adamw():
    """One step by hand: bias-corrected Adam of size lr, decay times lr on the weights only."""
    config = default_config().optimizer
    params = {"kernel": jnp.array([2.0, -4.0]), "bias": jnp.array([2.0])}
    grads = {"kernel": jnp.array([0.5, -0.1]), "bias": jnp.array([-3.0])}
    optimizer = make_optimizer(config, lambda step: 0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], [2 - 0.1 - 0.1 * 0.02 * 2, -4 + 0.1 + 0.1 * 0.02 * 4],
                               rtol=1e-6)
    np.testing.assert_allclose(new["bias"], [2.1], rtol=1e-6)


def block(recorded, **values):
    s = recorded["schedule"]
    return ConfigDict(dict(
        peak_lr=s["lr"], min_lr=s["min_lr"], warmup_lr=s["warmup_lr"],
        warmup_steps=100 * s["warmup_epochs"], schedule="albef_steps",
        steps_per_epoch=recorded["epoch0_loader_len"]) | values)


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_stepped_schedule_is_the_recorded_one(name):
    """Every iteration of epoch 0, and every later epoch at its first and last iteration."""
    recorded = RECORDED[name]
    length, epochs = recorded["epoch0_loader_len"], recorded["schedule"]["epochs"]
    schedule = jax.vmap(make_schedule(block(recorded), epochs * length))
    changes = dict(map(tuple, recorded["epoch0_lr_changes_before_iteration"]))
    expected, rate = [], None
    for iteration in range(length):
        rate = changes.get(iteration, rate)
        expected.append(rate)
    np.testing.assert_allclose(schedule(jnp.arange(length)), expected, rtol=1e-6)
    later = recorded["lr_of_epoch_1_and_later"]
    starts = length * jnp.arange(1, 1 + len(later))
    for steps in (starts, starts + length - 1):
        np.testing.assert_allclose(schedule(steps), later, rtol=2e-6, atol=1e-12)


def test_smooth_cosine():
    """Linear up in steps, half a cosine down; its ends, its middle, and after the end."""
    schedule = make_schedule(block(RECORDED["Pretrain"], schedule="cosine", warmup_steps=100), 1100)
    for step, rate in ((0, 1e-5), (50, 5.5e-5), (100, 1e-4), (600, 5.5e-5), (1100, 1e-5),
                       (5000, 1e-5)):
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step
    rates = jax.vmap(schedule)(jnp.arange(1101))
    assert np.all(np.diff(rates[:101]) > 0) and np.all(np.diff(rates[101:]) <= 1e-12)
    without = make_schedule(block(RECORDED["Pretrain"], schedule="cosine", warmup_steps=0), 10)
    assert float(without(0)) == pytest.approx(1e-4)


def test_unknown_schedule():
    with pytest.raises(UserError) as error:
        make_schedule(block(RECORDED["Pretrain"], schedule="linear"), 10)
    assert str(error.value) == ("optimizer.schedule is 'linear'; choose 'cosine' or "
                                "'albef_steps'.")
