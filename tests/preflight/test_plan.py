"""`albef plan`: the real step of a one-layer model, for a TPU slice, GPUs and this CPU."""

import math
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.preflight.ahead import buffer_bytes
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.estimate import device_bytes, kept_bytes, state_bytes, work_estimate
from albef_jax.preflight.plan import parts_for, plan
from albef_jax.preflight.targets import find_target

TINY = str(Path(__file__).parents[1] / "tiny.py")


def tiny(*overrides):
    return load_config(TINY, [f"--config.{override}" for override in overrides])


def gpus(count):
    return find_target(f"gpu:{count}")


def on_gpus(count, *overrides):
    """The `Parts` of the tiny config on so many GPUs that are not here."""
    return parts_for(assumed(tiny(*overrides)), gpus(count))


def traced_flops(jaxpr):
    """FLOPs of the matrix products of a traced function, loops counted in full."""
    total = 0
    for equation in jaxpr.eqns:
        values = equation.params.values()
        inside = [getattr(value, "jaxpr", value) for value in values]
        inside = sum(traced_flops(one) for one in inside if hasattr(one, "eqns"))
        total += inside * equation.params.get("length", 1)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(sizes) * equation.outvars[0].aval.size
    return total


def step_flops(*overrides):
    """Those of the training step of the tiny config."""
    parts = on_gpus(1, *overrides)
    return traced_flops(parts.step.trace(parts.state, parts.batch_spec, None).jaxpr.jaxpr)


@pytest.fixture
def planned(capsys):
    """`planned(*arguments)` -> exit code and printed text of `albef plan` with tests/tiny.py."""
    def run(*arguments):
        code = main(["plan", "--config", TINY, *arguments])
        return code, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def on_tpu():
    """The plan of the tiny config on a slice of four TPU v5e chips."""
    pytest.importorskip("libtpu")
    return plan(tiny("batch_size=32"), "v5e:2x2")


def test_collectives_are_the_gradients_and_the_features(on_tpu):
    assert {c.kind for c in on_tpu["collectives"]} == {"all-reduce", "all-gather"}
    assert {c.group for c in on_tpu["collectives"]} == {4}
    reduced = sum(c.payload for c in on_tpu["collectives"] if c.kind == "all-reduce")
    parameters = on_tpu["held"]["params"]
    assert 0.9 * parameters < reduced < 1.2 * parameters
    gathered = sum(c.payload for c in on_tpu["collectives"] if c.kind == "all-gather")
    assert gathered == 2 * 32 * 16 * 4  # features of images and texts, float32


def test_memory_of_the_compiled_step(on_tpu):
    held = on_tpu["held"]
    assert held["opt_state"] == pytest.approx(2 * held["params"], rel=0.01)
    assert held["padding"] >= 0 and held["temporaries"] > on_tpu["kept"] > 0
    assert on_tpu["fits"] and on_tpu["total"] == sum(held.values())


def test_work_of_the_compiled_step(on_tpu):
    """A chip does a quarter of the products that JAX traced: the compiler's text is read in full.

    It is less than the public code does: keys and values are shared, the head sees masked
    positions only.
    """
    assert 4 * on_tpu["flops"] == pytest.approx(step_flops("batch_size=32"), rel=0.01)
    parts = on_gpus(1, "batch_size=32")
    assert 4 * on_tpu["flops"] < 0.65 * 32 * sum(parts.task.flops(parts.config).values())
    assert on_tpu["prediction"].expected > on_tpu["prediction"].bound > 0


@pytest.mark.slow
def test_this_cpu(capsys):
    result = plan(tiny("model.scan=True"), "cpu")
    assert result["flops"] == pytest.approx(step_flops("model.scan=True"), rel=0.01)
    text = capsys.readouterr().out
    assert "cpu: 1 x cpu" in text and "no collectives" in text and "an estimate:" not in text
    # The state and the batch are what the compiler gets, but for a counter and an unused id.
    assert abs(result["held"]["padding"]) < 1e-3 * result["held"]["params"]
    assert result["held"]["temporaries"] > result["held"]["params"]


def test_gpus_are_estimated_and_it_says_so(planned):
    code, text = planned("--target", "gpu:2", "--config.steps=0", "--config.epochs=3",
                         "--examples", "160")
    assert code == 0 and "an estimate: there is no NVIDIA A100" in text
    assert re.search(r"whole config +30 steps \(3 epochs of 160 examples\)", text)


def test_what_does_not_fit_and_what_would(capsys):
    config = tiny("batch_size=32")
    crowded = plan(config, "gpu:2")
    result = plan(config, "gpu:2", hbm=crowded["total"] - 1, suggest=True)
    text = capsys.readouterr().out
    assert crowded["fits"] and "DOES NOT FIT" in text
    assert result["fits"] and result["total"] < crowded["total"]
    assert re.search(r"with --config\.model\.remat=True .*:\n", text)


def test_fsdp_splits_the_state():
    whole, split = (state_bytes(on_gpus(2, *fsdp)) for fsdp in ((), ("mesh.fsdp=2",)))
    assert split["params"] < 0.6 * whole["params"]
    assert split["opt_state"] < 0.6 * whole["opt_state"]
    assert split["batch"] == whole["batch"]


@pytest.mark.parametrize("devices, mesh", [(8, ()), (4, ("mesh.fsdp=2",))])
def test_a_group_on_several_devices(devices, mesh):
    """They share its rows, and what they keep of them; the gradients of all are summed."""
    one, several = (on_gpus(count, "group_size=16", *overrides)
                    for count, overrides in ((1, ()), (devices, mesh)))
    assert several.mesh.shape["data"] == 1
    assert several.mesh.shape["span"] * several.mesh.shape["fsdp"] == devices
    assert kept_bytes(several) == kept_bytes(one) // devices
    assert device_bytes(several.batch_spec) == device_bytes(one.batch_spec) // devices
    held = {"params": 100.0, "teacher": 0, "opt_state": 0, "gradients": 100.0, "activations": 0}
    ((flops, _), *_), (sent,) = work_estimate(several, held)
    assert flops == pytest.approx(16 * sum(one.task.flops(one.config).values()) / devices)
    gathered = 2 * 100 if mesh else 0  # the other half of the parameters, both ways
    assert sent == pytest.approx(2 * 100 * (devices - 1) / devices + gathered)


def test_several_groups_on_several_devices_each():
    parts = on_gpus(8)  # two groups of 8
    assert dict(parts.mesh.shape) == {"data": 2, "span": 4, "fsdp": 1, "model": 1}
    assert kept_bytes(parts) == kept_bytes(on_gpus(2)) // 4


def test_what_it_says_of_a_group_on_several_devices(planned):
    code, text = planned("--target", "gpu:8")
    assert code == 0 and "(data 2, span 4, fsdp 1, model 1)" in text
    assert "16 in groups of 8, each on 4 devices, 1 micro-step(s)" in text
    assert "not counted   what devices tell each other" in text
    code, text = planned("--target", "gpu:2")
    assert "(data 2, fsdp 1, model 1)" in text and "each on" not in text
    assert "not counted" not in text


def run_plan(config, *arguments):
    """Text of `albef plan` in a process of its own, which may have several CPU devices."""
    script = "import sys; from albef_jax.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "plan", "--config", str(config), *arguments], check=True,
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}).stdout


def test_collectives_of_a_group_on_eight_devices(outside_config):
    """Of somebody else's task: what is compared is gathered, gradients are summed."""
    text = run_plan(outside_config, "--target", "cpu:8", "--config.group_size=16")
    assert "(data 1, span 8, fsdp 1, model 1)" in text and "each on 8 devices" in text
    kinds = dict(re.findall(r"^ +(all-[a-z]+) +(\d+) .* over 8: ", text, re.MULTILINE))
    assert kinds.keys() >= {"all-gather", "all-reduce"}, text


@pytest.mark.slow
def test_collectives_of_a_group_of_albef_on_eight_devices():
    text = run_plan(TINY, "--target", "cpu:8", "--config.group_size=16")
    kinds = dict(re.findall(r"^ +(all-[a-z]+) +(\d+) .* over 8: ", text, re.MULTILINE))
    assert kinds.keys() >= {"all-gather", "all-reduce"}, text


def test_a_task_of_which_little_is_known(outside_config, capsys):
    """No teacher, no queues, no text, no FLOPs, no switches of the model."""
    assert main(["plan", "--config", str(outside_config), "--target", "gpu:2"]) == 0
    text = capsys.readouterr().out
    assert "parameters, float32\n" in text and "total" in text
    assert "teacher" not in text and "time (" not in text
    assert main(["plan", "--config", str(outside_config), "--target", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "FLOPs of the model" not in text and "MFU" not in text
    assert "FLOPs of the program" in text and "time (roofline)" in text
    few = ["plan", "--config", str(outside_config), "--target", "gpu:2", "--hbm", "1e-6GB"]
    assert main(few) == 1 and main([*few, "--config.group_size=16"]) == 1
    text, without = capsys.readouterr().out.split("DOES NOT FIT")[1:]
    assert "--config.accumulation=2" in text and "None fits" in text and "remat" not in text
    assert "No switch is left to try" in without  # one group is one micro-step


@pytest.mark.slow
def test_activations_follow_the_switches():
    def kept(*overrides):
        return kept_bytes(on_gpus(1, "batch_size=64", *overrides))

    usual = kept()
    assert kept("accumulation=4") < 0.4 * usual
    assert kept("model.remat=True") < 0.8 * usual


def test_buffers_on_the_chip_are_no_memory():
    text = """BufferAssignment:
allocation 0: size 100, parameter 0, shape |f32[25]| at ShapeIndex {}, maybe-live-out:
allocation 1: size 7, thread-local:
allocation 2: size 50, preallocated-temp:
allocation 3: size 900, color 1, preallocated-temp:
"""
    assert buffer_bytes(text) == (100, 57)


@pytest.mark.parametrize("arguments, words", [
    (["--target", "v9:2x4"], ["'v9:2x4'", "v5e:2x4", "gpu[:N]", "cpu[:N]"]),
    (["--target", "v5e"], ["'v5e'", "v5e:2x4"]),
    (["--target", "gpu:0"], ["'gpu:0'"]),
    (["--target", "cpu:4096"], ["4096 CPU devices"]),
    (["--target", "gpu:3"], ["2 groups of 8", "3 device(s)", "set batch_size to 24"]),
    (["--target", "gpu:8", "--config.group_size=2", "--config.batch_size=24",
      "--config.objective.queue_size=48"],
     ["12 groups of 2", "8 device(s)", "set batch_size to 16"]),
    (["--target", "gpu:6", "--config.mesh.fsdp=4"], ["x 4 x", "there are 6"]),
])
def test_mistakes(capsys, arguments, words):
    jax.devices()  # started: a CPU target cannot have more of them
    assert main(["plan", "--config", TINY, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("albef: ") and line.endswith(".")
    assert all(word in line for word in words)


def test_a_slice_that_does_not_exist(capsys):
    pytest.importorskip("libtpu")
    assert main(["plan", "--config", TINY, "--target", "v5e:3x5"]) == 2
    assert "no slice that the TPU compiler knows" in capsys.readouterr().err


def test_missing_libtpu():
    script = ("import sys; sys.modules['libtpu'] = None; from albef_jax.cli import main; "
              f"sys.exit(main(['plan', '--config', {TINY!r}, '--target', 'v5e:2x2']))")
    found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TPU_LIBRARY_PATH": ""}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                         env={**os.environ, **found})
    assert run.returncode == 2 and 'pip install "jax[tpu]"' in run.stderr


@pytest.mark.parametrize("size", ["16", "0GiB", "16MB"])
def test_sizes_of_memory(size, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--config", TINY, "--target", "gpu", "--hbm", size])
    assert "--hbm" in capsys.readouterr().err


@pytest.mark.slow
def test_buffers_are_those_of_the_finished_program(tmp_path):
    """What is read before machine code is made agrees with what the compiler says at its end."""
    pytest.importorskip("libtpu")
    mesh = jax.sharding.Mesh(np.array(find_target("v5e:2x2").devices), "data")
    whole, rows = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
                   for axes in ((), ("data",)))

    def loss(w_ldd, x):
        return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_ldd)[0])

    step = jax.jit(jax.grad(loss), in_shardings=(whole, rows), out_shardings=whole)
    compiled = step.lower(jax.ShapeDtypeStruct((6, 512, 512), jnp.float32),
                          jax.ShapeDtypeStruct((2**15, 512), jnp.float32)).compile(
        compiler_options={"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True})
    (buffers,) = tmp_path.glob("*after_optimizations-buffer-assignment.txt")
    arguments, temporaries = buffer_bytes(buffers.read_text())
    memory = compiled.memory_analysis()
    assert arguments == memory.argument_size_in_bytes
    assert 0.9 < (arguments + temporaries) / memory.peak_memory_in_bytes < 1.1


@pytest.mark.slow
def test_a_step_without_room_names_what_would_fit(capsys):
    pytest.importorskip("libtpu")
    crowd = tiny("batch_size=2097152", "objective.queue_size=0")
    result = plan(crowd, "v5e:2x2")
    text = capsys.readouterr().out
    assert not result["fits"] and result["held"]["temporaries"] > 16 * 2**30
    assert "found no room" in text and "--config.model.remat=True" in text
