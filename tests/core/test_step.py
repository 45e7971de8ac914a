"""The training step: the same losses on any device count, and what travels between devices."""

import json
import math
import os
from pathlib import Path
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.core.step import join_micro_steps, make_train_step, micro_steps, split_groups
from albef_jax.parallel.mesh import make_mesh, replicated

TESTS = Path(__file__).parents[1]
SIZES = ("batch_size=32", "group_size=2", "optimizer.warmup_steps=1", "optimizer.peak_lr=1e-3")
# name -> devices, overrides of the config beside SIZES
FAST = {"one": (1, {}), "eight": (8, {}), "mixed": (8, {"mesh.fsdp": 2, "mesh.model": 2})}
SLOW = {"one": (1, {}), "one_accumulated": (1, {"accumulation": 4}),
        "eight_accumulated": (8, {"accumulation": 2}), "fsdp_2": (8, {"mesh.fsdp": 2}),
        "fsdp_8": (8, {"mesh.fsdp": 8}),
        "model_2": (8, {"mesh.model": 2}),
        "fsdp_accumulated": (8, {"accumulation": 2, "mesh.fsdp": 4})}
# Groups that span devices: one group of all, and two groups on eight devices.
SPAN = {"one": (1, {"group_size": 32}), "span_8": (8, {"group_size": 32})}
SPAN_SLOW = {"one": (1, {"group_size": 16}), "span_2x1": (2, {"group_size": 16}),
             "span_2x4": (8, {"group_size": 16}),
             "span_fsdp": (8, {"group_size": 16, "mesh.fsdp": 2}),
             "span_model": (8, {"group_size": 16, "mesh.model": 2}),
             "span_accumulated": (4, {"group_size": 16, "accumulation": 2})}
PRODUCTS = {"one": (1, {"group_size": 32}), "span_8": (8, {"group_size": 32}),
            "span_fsdp": (8, {"group_size": 32, "mesh.fsdp": 4})}
NO_QUEUE = ("objective.queue_size=0",)
STEPS = 5
WORKER = """
    import json, pathlib, sys
    import jax, numpy as np
    from conftest import TESTS
    from albef_jax.config import load_config
    from albef_jax.core.build import build
    from albef_jax.parallel.mesh import check_groups, groups_of, make_mesh, shard_batch
    from albef_jax.preflight.bench import noise_batch

    folder, file = pathlib.Path(sys.argv[1]), sys.argv[2]
    sizes, layouts, steps = map(json.loads, sys.argv[3:])
    history = {}
    for name, (devices, values) in layouts.items():
        config = load_config(TESTS / file, [f"--config.{value}" for value in (
            "seed=3", *sizes, *(f"{key}={value}" for key, value in values.items()))])
        mesh = make_mesh(config.mesh, jax.devices()[:devices], groups_of(config))
        check_groups(config, mesh)
        parts, batch = build(config, mesh), noise_batch(config)
        now = parts.create_state()
        local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(now))
        first = shard_batch(batch, mesh)
        compiled = parts.step.lower(now, first, None).compile()
        (folder / f"{name}.hlo").write_text(compiled.as_text())
        history[name] = []
        for i in range(steps):
            rolled = {key: np.roll(value, i, axis=0) for key, value in batch.items()}
            now, metrics = compiled(now, shard_batch(rolled, mesh), None)
            history[name].append({"state_bytes": local} | {
                key: float(value) for key, value in metrics.items()})
        np.savez(folder / f"{name}.npz", **jax.device_get(now.memory))
    (folder / "history.json").write_text(json.dumps(history))
    """


def run_layouts(layouts, folder, *sizes, file="tiny.py"):
    """Metrics of five steps, the final queues and the program of each layout, in a folder."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), file,
         *map(json.dumps, ((*SIZES, *sizes), layouts, STEPS))], check=True, cwd=TESTS.parent,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8",
                          "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"})
    return folder


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The folder of `FAST`."""
    return run_layouts(FAST, tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def slow_layouts(tmp_path_factory):
    """The folder of `SLOW`."""
    return run_layouts(SLOW, tmp_path_factory.mktemp("slow_layouts"))


def assert_same_losses(folder):
    """Five steps in float32 with dropout 0.1: within 1e-5, the project's promise."""
    history = json.loads((folder / "history.json").read_text())
    one = history["one"]
    assert len({step["loss"] for step in one}) == STEPS
    for name, steps in history.items():
        for ours, reference in zip(steps, one, strict=True):
            for term, value in reference.items():
                if term.endswith(("_accuracy", "_overflow_per_group")):
                    # Counted, so exactly the same draws.
                    assert ours[term] == pytest.approx(value, abs=1e-6), (name, term)
                elif term != "state_bytes":
                    limit = 1e-4 if term == "grad_norm" else 1e-5
                    assert ours[term] == pytest.approx(value, rel=limit), (name, term)


def assert_queues_in_global_order(folder):
    reference = np.load(folder / "one.npz")
    for path in folder.glob("*.npz"):
        memory = np.load(path)
        assert memory["pointer"] == 32 * STEPS % 64
        for queue in ("image_queue", "text_queue"):
            np.testing.assert_allclose(memory[queue], reference[queue], atol=2e-5)


def test_the_same_losses_on_any_layout(layouts):
    assert_same_losses(layouts)


def test_the_queues_are_in_global_order_on_any_layout(layouts):
    assert_queues_in_global_order(layouts)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(), NO_QUEUE], ids=["queues", "no_queues"])
def test_a_group_may_span_all_devices(tmp_path, sizes):
    """One group of the whole batch on eight devices, dropout on: the losses of one device."""
    assert_same_losses(run_layouts(SPAN, tmp_path, *sizes))


@pytest.mark.slow
def test_groups_span_some_of_the_devices(tmp_path):
    folder = run_layouts(SPAN_SLOW, tmp_path)
    assert_same_losses(folder)
    assert_queues_in_global_order(folder)


@pytest.mark.slow
def test_one_group_of_products_spans_all_devices(tmp_path):
    """SCALE's global contrast: scores, masks and losses of one device, on eight and with fsdp."""
    assert_same_losses(run_layouts(PRODUCTS, tmp_path, file="tiny_scale.py"))


@pytest.mark.slow
def test_more_layouts(slow_layouts):
    assert_same_losses(slow_layouts)
    assert_queues_in_global_order(slow_layouts)


def collectives(text):
    """(operation, elements of each array of its result) of a compiled program's collectives."""
    kinds = ("all-gather|all-reduce|all-to-all|ragged-all-to-all|collective-permute|"
             "collective-broadcast|reduce-scatter")
    found = re.findall(rf"^ *(?:ROOT )?%\S+ = (.*?) ({kinds})(?:-start)?\(", text, re.MULTILINE)
    return [(kind, [math.prod(map(int, filter(None, dims.split(","))))
                    for dims in re.findall(r"\w+\[([\d,]*)\]", result)])
            for result, kind in found]


@pytest.mark.slow
def test_state_is_spread_over_the_devices(slow_layouts):
    """Vectors stay whole, matrices do not."""
    history = json.loads((slow_layouts / "history.json").read_text())
    size = {name: steps[0]["state_bytes"] for name, steps in history.items()}
    for name, devices in (("fsdp_2", 2), ("model_2", 2), ("fsdp_accumulated", 4), ("fsdp_8", 8)):
        assert size["one"] / devices < size[name] < 1.7 * size["one"] / devices


@pytest.mark.slow
@pytest.mark.parametrize("name, fsdp", [("fsdp_2", 2), ("fsdp_8", 8)])
def test_parameters_travel_and_activations_do_not(slow_layouts, tiny_run, name, fsdp):
    moved = collectives((slow_layouts / f"{name}.hlo").read_text())
    task, _, state, _ = tiny_run(*SIZES)
    parameters = {leaf.size // part for leaf in jax.tree.leaves(state.params)
                  for part in (1, fsdp)}
    features = 32 * task.model.config.embed_dim
    assert {kind for kind, _ in moved} == {"all-gather", "all-reduce"}
    assert {size for _, sizes in moved for size in sizes} <= {*parameters, features, 1}


@pytest.mark.parametrize("name, folder", [
    ("eight", "layouts"),
    pytest.param("eight_accumulated", "slow_layouts", marks=pytest.mark.slow)])
def test_only_features_and_gradients_travel(request, tiny_run, name, folder):
    """Two feature gathers and the gradients' all-reduce; nothing like image embeddings."""
    moved = collectives((request.getfixturevalue(folder) / f"{name}.hlo").read_text())
    task, _, state, _ = tiny_run(*SIZES)
    model = task.model.config
    tokens = 1 + (model.image_size // model.patch_size) ** 2
    image_embeddings = 32 // 8 * tokens * model.vit_width  # of one device
    features = 32 * model.embed_dim
    assert features < image_embeddings

    gathered = [sizes for kind, sizes in moved if kind == "all-gather"]
    assert gathered == [[features], [features]]
    reduced = [size for kind, sizes in moved if kind == "all-reduce" for size in sizes]
    parameters = [leaf.size for leaf in jax.tree.leaves(state.params)]
    # Gradients and metrics; a parameter that is used twice may be reduced for each use.
    assert set(reduced) <= {*parameters, 1} and image_embeddings not in reduced
    assert sum(parameters) <= sum(reduced) <= 1.5 * sum(parameters)
    assert {kind for kind, _ in moved} == {"all-gather", "all-reduce"}


def test_the_parser_sees_collectives():
    text = """
      %all-gather.1 = f32[32,16]{1,0} all-gather(%x), channel_id=1
      ROOT %y = (f32[2]{0}, f32[], bf16[3,4]{1,0}) all-reduce-start(%a, %b, %c), channel_id=2
      %z = f32[4,17,32]{2,1,0} collective-permute(%all-gather.1), channel_id=3
      %w = f32[4]{0} fusion(%all-reduce.7), calls=%add"""
    assert collectives(text) == [
        ("all-gather", [512]), ("all-reduce", [2, 1, 12]), ("collective-permute", [2176])]


def test_micro_steps_take_from_every_device():
    """Groups 0..11 of 2 devices in 3 micro-steps: equal runs of each device's groups."""
    groups = np.arange(12)[:, None]
    micro = micro_steps(groups, 3, 2)
    np.testing.assert_array_equal(micro[..., 0], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]])
    np.testing.assert_array_equal(join_micro_steps(micro, 2), groups)
    np.testing.assert_array_equal(split_groups(np.arange(6), 2), [[0, 1], [2, 3], [4, 5]])


def one_step(run, **options):
    """A step on one device: the state given to it, the state after it, and its metrics."""
    task, optimizer, state, batch = run
    mesh = make_mesh(devices=jax.devices()[:1])
    state = jax.device_put(state.replace(**options), replicated(mesh))
    step = make_train_step(task, optimizer, mesh, (), jax.tree.map(lambda x: x.sharding, state),
                           seed=0, group_size=8, groups=2, accumulation=1, momentum=0.9)
    return state, *step(state, batch, None)


def test_order_of_a_step_and_donation(tiny_run):
    """Clamp, EMA with this step's weights, then the optimiser; the old state is given away."""
    run = tiny_run("optimizer.warmup_lr=1e-3", "objective.positives=image")
    run[3]["image_id"] = jnp.arange(16) // 2
    params = {**run[2].params, "temp": jnp.float32(0.9)}
    teacher = jax.tree.map(lambda x: x + 0.5, run[2].teacher)
    # Copies: a view of a buffer would keep it from being donated.
    before = jax.tree.map(np.array, (params, teacher, run[2].memory))
    given, after, metrics = one_step(run, params=params, teacher=teacher)
    assert metrics["temperature"] == 0.5 and after.step == 1
    assert all(np.isfinite(value) for value in metrics.values())
    expected = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * p, before[1],
                            run[0].teacher_of(before[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 after.teacher, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params, before[0])
    assert all(0 < shift < 0.5 for shift in jax.tree.leaves(moved))

    # The batch of 16 took the first places of the queue of 64, with its image ids.
    assert after.memory["pointer"] == 16
    for name in ("image_queue", "text_queue"):
        changed = np.any(np.asarray(after.memory[name]) != before[2][name], axis=-1)
        np.testing.assert_array_equal(changed, np.arange(64) < 16)
        np.testing.assert_allclose(np.linalg.norm(after.memory[name], axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(after.memory["id_queue"],
                                  np.where(np.arange(64) < 16, np.arange(64) // 2, -1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))


DEEP = ("model.vit_depth=2", "model.text_layers=2", "model.fusion_layers=3")
NO_DROPOUT = ("model.dropout=0.0", "model.attention_dropout=0.0")


@pytest.mark.slow
@pytest.mark.parametrize("fixed, switches", [
    (NO_DROPOUT, ("model.remat=True", "model.scan=True", "model.remat_save=('qkv', 'mlp')")),
    ((), ("model.remat=True",)),  # dropout draws stay
], ids=["scan", "remat"])
def test_scan_and_remat_change_no_value(tiny_run, fixed, switches):
    """Losses, and gradients as the optimizer has seen them."""
    (_, plain, metrics), (_, changed, others) = (
        one_step(tiny_run(*DEEP, *fixed, *more)) for more in ((), switches))
    for name, value in metrics.items():
        assert float(others[name]) == pytest.approx(float(value), rel=1e-5), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, atol=1e-5 * np.abs(a).max()), plain.opt_state, changed.opt_state)


@pytest.mark.slow
def test_without_itc(tiny_run):
    """The ablation's first row: no queues, random negatives, ITM and MLM still learn."""
    run = tiny_run("objective.itc=False", "objective.negatives=random")
    before = jax.tree.map(np.array, run[2].params)
    _, after, metrics = one_step(run)
    metrics = {name: float(value) for name, value in metrics.items()}
    assert after.memory == {} and metrics["itc"] == 0.0
    assert metrics["loss"] == pytest.approx(metrics["itm"] + metrics["mlm"], rel=1e-6)
    assert metrics["itm"] > 0.1 and metrics["mlm"] > 1.0
    assert np.abs(after.params["itm_head"]["dense"]["bias"] - before["itm_head"]["dense"][
        "bias"]).max() > 0
