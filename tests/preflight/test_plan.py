"""`albef plan`: the real step of a one-layer model, for a TPU slice, GPUs and this CPU."""

import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.preflight.ahead import buffer_bytes
from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.preflight.estimate import kept_bytes, state_bytes
from albef_jax.models.flops import step_flops
from albef_jax.preflight.plan import plan, plan_mesh, with_steps
from albef_jax.preflight.targets import find_target

TINY = str(Path(__file__).parents[1] / "tiny.py")


def tiny(*overrides):
    return load_config(TINY, [f"--config.{override}" for override in overrides])


def gpus(count):
    return find_target(f"gpu:{count}")


def sizes(config, count):
    return state_bytes(config, plan_mesh(config, gpus(count)))


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
    parameters = on_tpu["parts"]["params"]
    assert 0.9 * parameters < reduced < 1.2 * parameters
    gathered = sum(c.payload for c in on_tpu["collectives"] if c.kind == "all-gather")
    assert gathered == 2 * 32 * 16 * 4  # features of images and texts, float32


def test_memory_of_the_compiled_step(on_tpu):
    parts = on_tpu["parts"]
    assert parts["opt_state"] == pytest.approx(2 * parts["params"], rel=0.01)
    assert parts["padding"] >= 0 and parts["temporaries"] > on_tpu["kept"] > 0
    assert on_tpu["fits"] and on_tpu["total"] == sum(parts.values())


def test_work_of_the_compiled_step(on_tpu):
    # Matrix products of a step on one of four chips: less than the public code's (shared keys
    # and values, the head on masked positions only), but most of it.
    model = step_flops(tiny())["total"] * 32 / 4
    assert 0.5 * model < on_tpu["flops"] < model
    assert on_tpu["prediction"].expected > on_tpu["prediction"].bound > 0


def test_this_cpu(capsys):
    result = plan(tiny("model.scan=True"), "cpu")
    text = capsys.readouterr().out
    assert "cpu: 1 x cpu" in text and "no collectives" in text and "an estimate:" not in text
    # The state and the batch are what the compiler gets, but for a counter and an unused id.
    assert abs(result["parts"]["padding"]) < 1e-3 * result["parts"]["params"]
    assert result["parts"]["temporaries"] > result["parts"]["params"]


def test_gpus_are_estimated_and_it_says_so(planned):
    code, text = planned("--target", "gpu:2", "--config.steps=0", "--config.epochs=3",
                         "--examples", "160")
    assert code == 0 and "an estimate: there is no NVIDIA A100" in text
    assert re.search(r"whole config +30 steps \(3 epochs of 160 examples\)", text)


def test_steps_come_from_the_config_or_from_the_examples():
    unknown, epoch = with_steps(tiny("steps=0"), 0)
    assert (unknown.steps, epoch) == (0, 0)
    stated, epoch = with_steps(tiny("steps=0", "epochs=3", "data.examples=160"), 0)
    assert (stated.steps, epoch) == (30, 160)
    given, epoch = with_steps(tiny("steps=0", "epochs=3", "data.examples=160"), 320)
    assert (given.steps, epoch) == (60, 320)
    assert with_steps(tiny("steps=7"), 320)[0].steps == 7


def test_what_does_not_fit_and_what_would(capsys):
    config = tiny("batch_size=32")
    crowded = plan(config, "gpu:2")
    result = plan(config, "gpu:2", hbm=crowded["total"] - 1, suggest=True)
    text = capsys.readouterr().out
    assert crowded["fits"] and "DOES NOT FIT" in text
    assert result["fits"] and result["total"] < crowded["total"]
    assert re.search(r"with --config\.model\.remat=True .*:\n", text)


def test_fsdp_splits_the_state():
    whole, split = sizes(tiny(), 2), sizes(tiny("mesh.fsdp=2"), 2)
    assert split["params"] < 0.6 * whole["params"]
    assert split["opt_state"] < 0.6 * whole["opt_state"]
    assert split["batch"] == whole["batch"]


def test_activations_follow_the_switches():
    def kept(*overrides):
        config = tiny("batch_size=64", *overrides)
        return kept_bytes(config, plan_mesh(config, gpus(1)))

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
    (["--target", "gpu:8"], ["2 groups of 8", "8 device(s)", "set batch_size to 64"]),
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
    assert not result["fits"] and result["parts"]["temporaries"] > 16 * 2**30
    assert "found no room" in text and "--config.model.remat=True" in text
