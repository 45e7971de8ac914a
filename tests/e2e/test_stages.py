"""Runs in stages: stopped in each of them they end as one that was not; one is a plain run."""

import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.train import train

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[1] / "tiny_imagebert.py"
STAGES = f"{CONFIG}:stages"


@pytest.fixture(scope="module")
def straight(albef, tmp_path_factory):
    """Two stages of 12 and 8 steps, never interrupted."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    done = albef.train(workdir, config=STAGES)
    assert done.returncode == 0, done.stderr
    assert "stage 'noisy': 80 examples, 12 steps" in done.stderr
    assert "after step 12 the stage 'clean' begins" in done.stderr
    return workdir


def stopped_at(albef, workdir, line):
    """Starts or resumes the run, and stops it once it has logged a step."""
    process = albef.start("train", "--config", STAGES, "--workdir", workdir)
    try:
        assert any(told.startswith(line) for told in process.stderr)
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_stopped_in_each_stage(albef, straight, read_run, tmp_path):
    stopped_at(albef, tmp_path, "step 5/20")
    _, _, first = read_run(tmp_path)
    stopped_at(albef, tmp_path, "step 14/20")
    _, _, second = read_run(tmp_path)
    assert first < 12 < second < 20
    done = albef.train(tmp_path, config=STAGES)
    assert done.returncode == 0 and f"resuming at step {second}" in done.stderr
    (metrics, state, step), (other, other_state, other_step) = (
        read_run(straight), read_run(tmp_path))
    assert step == other_step == 20 and metrics == other
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


def test_the_schedule_starts_again(straight, read_run):
    metrics, _, _ = read_run(straight)
    rates = [metrics[step]["lr"] for step in range(1, 21)]
    assert rates[0] == 0 and max(rates[:12]) == pytest.approx(2e-3, rel=0.2)
    assert rates[11] < rates[12] == pytest.approx(5e-4)  # without warm-up
    assert rates[12:] == sorted(rates[12:], reverse=True)
    assert metrics[1]["mrfr"] > 0 and metrics[20]["mrfr"] > 0  # measured, though not learned


@pytest.mark.slow
def test_resuming_at_the_border(albef, straight, read_run, tmp_path):
    """A run that ended with its first stage gets a second one: it is as if it had always had it."""
    # Words of both stages, which a run that knows only the first one would not have.
    config = load_config(STAGES, [f"--config.data.tokenizer={straight / 'tokenizer'}"])
    first, second = config.stages
    config.stages = (first,)
    assert train(config, tmp_path)
    _, _, step = read_run(tmp_path)
    assert step == 12
    config.stages = (first, second)
    assert train(config, tmp_path)
    metrics, state, _ = read_run(tmp_path)
    other, other_state, _ = read_run(straight)
    assert metrics == other
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


@pytest.mark.parametrize("path", [
    pytest.param(CONFIG, id="imagebert"),
    pytest.param(CONFIG.with_name("tiny.py"), id="albef", marks=pytest.mark.slow)])
def test_a_list_of_one_is_a_plain_run(read_run, tmp_path, path):
    """Bit for bit, of any task."""
    runs = []
    for name, stages in (("plain", "()"), ("one", "({'name': 'all', 'steps': 6},)")):
        config = load_config(path, [f"--config.stages={stages}", "--config.steps=6"])
        config.evals = {}
        assert train(config, tmp_path / name)
        runs.append(read_run(tmp_path / name))
    (metrics, state, step), (other, other_state, other_step) = runs
    assert step == other_step == 6 and metrics == other
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
