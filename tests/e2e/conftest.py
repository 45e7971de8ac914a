"""Commands as a person types them, in processes of their own, and what they leave behind."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

from albef_jax.core.build import build
from albef_jax.parallel.mesh import make_mesh
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.workdir import read_config

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.executable).parent / "albef"
COMMAND = [str(INSTALLED)] if INSTALLED.exists() else [
    sys.executable, "-c", "import sys; from albef_jax.cli import main; sys.exit(main())"]
# Rates and waits differ from run to run; everything else must not.
TIMES = {"step_time", "samples_per_sec_per_device", "tflops_per_device", "mfu", "data_wait", "wall",
         "slowest_process", "slowest_process_time", "fastest_process", "fastest_process_time"}


class Commands:
    """Runs `albef`; paths of configs are relative to the repository, as in the README."""

    options = dict(cwd=ROOT, text=True,
                   env=os.environ | {"PYTHONPATH": f"{ROOT}", "PYTHONUNBUFFERED": "1"})

    def run(self, *arguments):
        """Waits for the end; the result has returncode, stdout and stderr."""
        return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, timeout=300,
                              **self.options)

    def train(self, workdir, *arguments, config="tests/tiny.py"):
        return self.run("train", "--config", config, "--workdir", workdir, *arguments)

    def start(self, *arguments):
        """Starts `albef`; the process has the pipe stderr."""
        return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, **self.options)

    def start_training(self, workdir, *arguments):
        """Starts `albef train` with tests/tiny.py, as `start`."""
        return self.start("train", "--config", "tests/tiny.py", "--workdir", workdir, *arguments)

    def launch(self, processes, devices, *arguments):
        """Starts `albef` in several processes; the process has the pipe stdout, of all lines."""
        return subprocess.Popen(
            [sys.executable, "launch/local_processes.py", "--processes", str(processes),
             "--devices-per-process", str(devices), "--", *COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **self.options)


@pytest.fixture(scope="session")
def albef():
    return Commands()


def metrics_of(workdir):
    """step -> the logged values that do not depend on the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    logged = [(line.pop("step"), {k: v for k, v in line.items() if k not in TIMES})
              for line in lines if line.keys() > {"step", "wall"}]
    assert len(logged) == len(dict(logged)), "a step is logged twice"
    return dict(logged)


def state_of(workdir, step=None):
    """The saved train state, as numpy, and its step."""
    config = read_config(workdir)
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    checkpointer = Checkpointer(workdir, config.checkpoint)
    try:
        state, step = checkpointer.restore(parts.state, step)
    finally:
        checkpointer.close()
    return jax.tree.map(np.asarray, state), step


@pytest.fixture(scope="session")
def read_run():
    """`read_run(workdir)` -> metrics by step, saved state, its step."""
    from etils import epath

    return lambda workdir, step=None: (
        metrics_of(workdir), *state_of(epath.Path(workdir), step))
