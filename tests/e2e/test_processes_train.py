"""Training in several real processes: the losses of one, stops and kills, other topologies."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TRAIN = ("train", "--config", "tests/tiny.py", "--process-timeout", "20", "--workdir")
# Eight groups, one for each of 2 x 4 devices; small steps, or rounding grows from step to step.
RUN = ("--config.group_size=2", "--config.steps=40", "--config.checkpoint.every=10",
       "--config.optimizer.peak_lr=2e-4", "--config.optimizer.min_lr=1e-4")
FIVE = ("--config.group_size=2", "--config.steps=5", "--config.optimizer.peak_lr=2e-4",
        "--config.optimizer.min_lr=1e-4")
LOSSES = ("loss", "itc", "itm", "mlm")


def losses_of(workdir):
    """step -> losses."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: [line[name] for name in LOSSES] for line in lines if "loss" in line}


def assert_same_losses(one, other):
    assert one.keys() == other.keys()
    for step in one:
        assert one[step] == pytest.approx(other[step], rel=1e-5, abs=1e-6), step


def read_until(launched, text):
    lines = ""
    while text not in lines:
        line = launched.stdout.readline()
        assert line, lines
        lines += line
    return lines


def child(launched, process):
    """The process id of one of the processes: they are started in order."""
    listed = subprocess.run(["pgrep", "-P", str(launched.pid)], capture_output=True, text=True)
    return sorted(map(int, listed.stdout.split()))[process]


@pytest.fixture(scope="module")
def five(albef, tmp_path_factory):
    """The losses of five steps in one process on one device."""
    workdir = tmp_path_factory.mktemp("five") / "run"
    done = albef.train(workdir, *FIVE)
    assert done.returncode == 0, done.stderr
    return losses_of(workdir)


@pytest.mark.parametrize("processes, devices, mesh", [
    (2, 4, ()), (2, 2, ("--config.mesh.fsdp=2", "--config.mesh.model=2"))], ids=["data", "model"])
def test_five_steps_have_the_losses_of_one_device(albef, five, tmp_path, processes, devices, mesh):
    launched = albef.launch(processes, devices, *TRAIN, tmp_path, *FIVE, *mesh)
    lines, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0 and "on 8 cpu" in lines or devices == 2, lines
    assert len(five) == 5
    assert_same_losses(losses_of(tmp_path), five)


@pytest.mark.parametrize("queues", [(), ("--config.objective.queue_size=0",)],
                         ids=["queues", "no_queues"])
def test_one_group_spans_two_processes(albef, tmp_path, queues):
    """The whole batch is one group, on 2 x 2 devices; dropout is on."""
    options = ("--config.group_size=16", *FIVE[1:], *queues)
    alone = albef.train(tmp_path / "alone", *options)
    assert alone.returncode == 0, alone.stderr
    launched = albef.launch(2, 2, *TRAIN, tmp_path / "two", *options)
    lines, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0 and "on 4 cpu" in lines, lines
    assert_same_losses(losses_of(tmp_path / "two"), losses_of(tmp_path / "alone"))


def test_a_run_goes_from_topology_to_topology(albef, tmp_path):
    """2 x 4 devices, SIGTERM; one device, SIGTERM; 2 x 2 devices, SIGKILL; one device to the end.

    All of it has the losses of a run on one device that nobody stopped.
    """
    straight, workdir = tmp_path / "straight", tmp_path / "run"
    assert albef.train(straight, *RUN).returncode == 0

    launched = albef.launch(2, 4, *TRAIN, workdir, *RUN)
    read_until(launched, "step 2/40")
    os.kill(child(launched, 1), signal.SIGTERM)
    lines, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, lines
    (saved,) = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert f"finished {saved} of 40 steps" in lines and 2 < saved < 40

    process = albef.start_training(workdir, *RUN)
    for line in process.stderr:
        if f"step {saved + 2}/40" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 0 and "same command again" in rest

    launched = albef.launch(2, 2, *TRAIN, workdir, *RUN)
    lines = read_until(launched, "resuming at step")
    began = int(lines.split("resuming at step")[1].split(":")[0])
    assert began > saved
    lines = read_until(launched, f"step {began + 3}/40")
    begin = time.monotonic()
    os.kill(child(launched, 1), signal.SIGKILL)
    lines, _ = launched.communicate(timeout=120)
    assert launched.returncode == 1 and time.monotonic() - begin < 30
    assert "local_processes: process 1 of 2 was killed by SIGKILL" in lines.splitlines()[-1]

    done = albef.train(workdir, *RUN)
    assert done.returncode == 0, done.stderr
    went_on = int(done.stderr.split("resuming at step")[1].split(":")[0])
    assert went_on >= began
    assert_same_losses(losses_of(workdir), losses_of(straight))


@pytest.mark.parametrize("mesh", [(), ("--config.mesh.fsdp=2",)], ids=["data", "fsdp"])
def test_evaluation_has_the_numbers_of_one_process(albef, tmp_path, five_run, mesh):
    evaluate = ("evaluate", five_run, "--config", "tests/tiny.py:learn", *mesh)
    launched = albef.launch(2, 1, *evaluate)
    lines, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, lines
    results = read_results(five_run)
    assert albef.run("evaluate", five_run, "--config", "tests/tiny.py:learn").returncode == 0
    alone = read_results(five_run)
    assert results.keys() == alone.keys() == {"dev", "words"}
    for name, values in alone.items():
        assert results[name] == pytest.approx(values, abs=1e-3)


@pytest.fixture(scope="module")
def five_run(albef, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    assert albef.train(workdir, *FIVE).returncode == 0
    return workdir


def read_results(workdir):
    return {path.stem: json.loads(path.read_text())["values"]
            for path in (workdir / "results").glob("*.json")}


def test_recording_of_two_processes_in_two_processes():
    """tests/parity.py runs the same case in one process."""
    done = subprocess.run(
        [sys.executable, "launch/local_processes.py", "--processes", "2", "--", sys.executable,
         "tests/parity_processes.py", "tests/golden/pretrain_2proc"], cwd=ROOT, text=True,
        capture_output=True, timeout=200, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("15 compared, 0 missed") == 2
