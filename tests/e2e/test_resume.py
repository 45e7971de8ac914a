"""Nothing is lost: a run that was stopped or killed ends exactly as one that was not."""

import signal
import time

import jax
import numpy as np
import pytest

from albef_jax.report.history import read_history
from albef_jax.run.goodput import starts_of


@pytest.fixture(scope="module")
def straight(albef, tmp_path_factory):
    """A run of 60 steps with dropout, never interrupted; steps 3 and 4 are traced."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = albef.train(workdir, "--profile", "3:4")
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same_run(one, other):
    """Losses, parameters, teacher, optimiser and queues, bit for bit."""
    (metrics, state, step), (other_metrics, other_state, other_step) = one, other
    assert step == other_step == 60
    assert metrics == other_metrics
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


def test_sixty_steps(straight, read_run):
    metrics, state, step = read_run(straight)
    assert sorted(metrics) == list(range(1, 61)) and step == state.step == 60
    assert {"loss", "itc", "itm", "mlm", "mi_bound", "grad_norm", "lr"} <= metrics[1].keys()
    assert len({m["loss"] for m in metrics.values()}) == 60  # draws differ from step to step
    assert state.memory["pointer"] == 60 * 16 % 64
    assert [p.name for p in sorted((straight / "checkpoints").iterdir())] == ["40", "60"]


def test_profile_writes_a_trace(straight):
    traces = list((straight / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 10_000


def wait_for_line(process, text):
    for line in process.stderr:
        if line.startswith(text):
            return
    raise AssertionError(f"the run ended before {text!r}")


def test_sigterm_and_resume_is_exact(albef, straight, read_run, tmp_path):
    process = albef.start_training(tmp_path)
    wait_for_line(process, "step 24/60")  # lines come a step late: this is step 25
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 0
    metrics, _, stopped = read_run(tmp_path)
    assert 25 <= stopped < 60 and max(metrics) == stopped
    assert f"finished {stopped} of 60 steps" in rest and "same command again" in rest

    resumed = albef.train(tmp_path)
    assert resumed.returncode == 0 and f"resuming at step {stopped}" in resumed.stderr
    assert_same_run(read_run(tmp_path), read_run(straight))


@pytest.mark.slow
def test_sigkill_loses_the_steps_since_the_checkpoint(albef, straight, read_run, tmp_path):
    process = albef.start_training(tmp_path)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoints" / "20").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = albef.train(tmp_path)
    assert resumed.returncode == 0
    assert "resuming at step 20" in resumed.stderr or "resuming at step 40" in resumed.stderr
    assert_same_run(read_run(tmp_path), read_run(straight))


@pytest.mark.slow
def test_finished_runs_are_left_alone(albef, straight, read_run):
    before = read_run(straight)
    again = albef.train(straight)
    assert again.returncode == 0 and "nothing is left to train" in again.stderr
    assert_same_run(read_run(straight), before)


@pytest.mark.parametrize("override, sentence", [
    ("--config.model.embed_dim=8", "config.model.embed_dim=16, not 8"),
    ("--config.seed=1", "config.seed=0, not 1"),
    ("--config.data.source.size=48", "holds a run on other data"),
])
def test_a_work_directory_of_another_config(albef, straight, override, sentence):
    refused = albef.train(straight, override)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert sentence in refused.stderr.splitlines()[-1]
    assert "another --workdir" in refused.stderr


@pytest.mark.slow
def test_the_wall_time_of_three_killed_starts_is_accounted_for(albef, tmp_path):
    """The parts of all starts sum to what the processes lived, and what was lost is said."""
    lived, options = 0.0, ("--config.checkpoint.every=100", "--config.steps=400")
    for last in (90, 190, 290, None):
        begin = time.monotonic()
        process = albef.start_training(tmp_path, *options)
        wait_for_line(process, f"step {last}/400" if last else "finished 400")
        lived += time.monotonic() - begin  # the interpreter's own end is nobody's
        if last:
            process.kill()
        process.communicate()
    starts = starts_of(read_history(tmp_path / "metrics.jsonl"))
    assert sum(sum(start.seconds.values()) for start in starts) == pytest.approx(lived, rel=0.01)
    assert len(starts) == 4 and starts[-1].last == 400
    assert all(start.seconds["lost"] > 0 for start in starts[:3])
    assert "lost" not in starts[-1].seconds and starts[-1].seconds["restore"] > 0
