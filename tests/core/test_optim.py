"""Schedules, decay, clipping, rates by parameter; the update is in the golden pretrain_train."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from albef_jax.config import LIMITS, check_values, default_config, load_config
from albef_jax.core.build import build, trained
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh
from albef_jax.core.optim import (
    CHOICES, DEFAULTS, clip_each, make_optimizer, make_schedule, matches)
from albef_jax.tasks import make_task

RECORDED = json.loads(
    (Path(__file__).parents[1] / "golden" / "lr_schedule" / "schedules.json").read_text())


def test_biases_and_norms_do_not_decay():
    """As the public code: vectors called bias or a norm's scale; [CLS], temperature, words do."""
    shapes = jax.eval_shape(make_task(default_config()).init, jax.random.key(0))
    mask = jax.tree.map(lambda spared: not spared, matches(shapes, DEFAULTS["no_decay"]))
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
    return ConfigDict(DEFAULTS | dict(
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


def test_linear_and_constant():
    """BERT's schedule, and a rate that stays; with and without warm-up."""
    rates = dict(peak_lr=1e-3, min_lr=0.0, warmup_lr=0.0)
    linear = make_schedule(ConfigDict(DEFAULTS | rates | dict(schedule="linear", warmup_steps=10)),
                           110)
    for step, rate in ((0, 0.0), (5, 5e-4), (10, 1e-3), (60, 5e-4), (110, 0.0), (500, 0.0)):
        assert float(linear(step)) == pytest.approx(rate, abs=1e-9), step
    constant = make_schedule(ConfigDict(DEFAULTS | rates | dict(
        schedule="constant", warmup_steps=0)), 110)
    assert float(constant(0)) == float(constant(500)) == pytest.approx(1e-3)


def test_unknown_names():
    for values, sentence in (
            (dict(schedule="steps"), "config.optimizer.schedule is 'steps'; it must be 'cosine', "
                                     "'linear', 'constant' or 'albef_steps'."),
            (dict(clip="norm"), "config.optimizer.clip is 'norm'; it must be 'none', 'global' or "
                                "'per_tensor'.")):
        with pytest.raises(UserError) as error:
            check_values(ConfigDict({"optimizer": DEFAULTS | values}),
                         ConfigDict({"optimizer": DEFAULTS}), LIMITS, CHOICES)
        assert str(error.value) == sentence


def test_clipping_of_tensors_that_are_joined_here():
    """Queries, keys and values: three tensors of BERT, each with its own norm."""
    config = ConfigDict(DEFAULTS | dict(clip="per_tensor", clip_norm=1.0,
                                        clip_parts=(("qkv/", 3),)))
    clip = clip_each(config)
    grads = {"qkv": {"kernel": jnp.array([[3.0, 0.1, 0.0], [4.0, 0.1, 2.0]])},
             "output": {"kernel": jnp.array([[3.0, 4.0]])}, "temp": jnp.array(-2.0)}
    clipped, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(clipped["qkv"]["kernel"], [[0.6, 0.1, 0.0], [0.8, 0.1, 1.0]],
                               rtol=1e-5)
    np.testing.assert_allclose(clipped["output"]["kernel"], [[0.6, 0.8]], rtol=1e-5)
    np.testing.assert_allclose(clipped["temp"], -1.0, rtol=1e-5)


def test_warm_up_as_a_share_of_all_steps():
    """BERT's schedule, between whole steps too."""
    config = ConfigDict(DEFAULTS | dict(peak_lr=1.0, min_lr=0.0, warmup_lr=0.0, schedule="linear",
                                        warmup_share=0.2))
    rates = jax.vmap(make_schedule(config, 7))(jnp.arange(9))  # 1.4 of 7 steps
    expected = [s / 1.4 if s < 1.4 else max((7 - s) / 5.6, 0) for s in range(9)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_global_clipping_and_rates_by_pattern():
    params = {"a": {"kernel": jnp.array([1.0])}, "b": {"kernel": jnp.array([1.0])}}
    grads = jax.tree.map(lambda x: 30 * x, params)
    config = ConfigDict(DEFAULTS | dict(clip="global", clip_norm=1.0, weight_decay=0.0, eps=1.0,
                                        lr_factors=(("^a/", 0.1),), bias_correction=False,
                                        b1=0.0, b2=0.0))
    optimizer = make_optimizer(config, lambda step: 1.0)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    clipped = 1 / np.sqrt(2)  # of each of two equal gradients
    moved = clipped / (clipped + 1.0)
    np.testing.assert_allclose(updates["b"]["kernel"], [-moved], rtol=1e-6)
    np.testing.assert_allclose(updates["a"]["kernel"], [-0.1 * moved], rtol=1e-6)


TINY = Path(__file__).parents[1] / "tiny.py"
UNREACHED = {
    ("nlvr_pretrain",): {"temp", "vision_proj", "text_proj"},
    ("pretrain", "objective.itc=False", "objective.negatives=random"): {
        "temp", "vision_proj", "text_proj"},
    ("pretrain",): set(), ("retrieval",): set(), ("vqa",): set(), ("ve",): set(),
    ("nlvr",): set()}


@pytest.mark.parametrize("overrides", UNREACHED, ids="-".join)
def test_parameters_without_gradient_are_found(overrides):
    """By construction, in every task; torch skips them too."""
    name, *others = overrides
    config = load_config(TINY, [f"--config.{value}" for value in (f"task={name}", *others)])
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    params = jax.eval_shape(parts.task.init, jax.random.key(0))
    reached = trained(parts.task, params, parts.example)
    still = {path[0].key for path, yes in jax.tree_util.tree_leaves_with_path(reached) if not yes}
    moved = {path[0].key for path, yes in jax.tree_util.tree_leaves_with_path(reached) if yes}
    assert still == UNREACHED[overrides] and not moved & still and len(moved) >= 3


def test_parameters_without_gradient_are_left_as_they_are(tiny_run):
    """Those, and only those, keep their value, though all would decay."""
    _, optimizer, state, _ = tiny_run("task=nlvr_pretrain")
    unreached = UNREACHED["nlvr_pretrain",]
    grads = {part: jax.tree.map(jnp.zeros_like if part in unreached else jnp.ones_like, leaves)
             for part, leaves in state.params.items()}
    updates, _ = jax.jit(optimizer.update)(grads, state.opt_state, state.params)
    still = {part for part, leaves in updates.items() if not any(map(np.any, jax.tree.leaves(
        leaves)))}
    assert still == unreached


def test_parameters_that_a_task_freezes():
    params = {"visual_encoder": {"kernel": jnp.ones(2)}, "text": {"kernel": jnp.ones(2)}}
    frozen = {"visual_encoder": {"kernel": True}, "text": {"kernel": False}}
    optimizer = make_optimizer(default_config().optimizer, lambda step: 0.1, None, frozen)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not np.any(updates["visual_encoder"]["kernel"]) and np.all(updates["text"]["kernel"])
