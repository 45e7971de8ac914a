"""Real processes over loopback: they meet, stop together, and end together.

What they run is a loop with the project's own signals and checkpoints and a step that compiles at
once; tests/e2e/test_processes_train.py does the same with training.
"""

import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from albef_jax.parallel import processes
from albef_jax.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, ROOT / "launch" / "local_processes.py"]
# The step adds 1 to a number on every device; process 1 does something else at step 5.
PROGRAM = """
import os, signal, sys, time
from albef_jax.parallel import processes
mode, workdir = sys.argv[1:]
if mode == "absent" and os.environ["JAX_PROCESS_ID"] == "1":
    sys.exit(3)
with processes.joined(timeout=4, hang_timeout=0 if mode == "frozen" else 3):
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from albef_jax.run.checkpoint import Checkpointer
    from albef_jax.config import default_config
    from albef_jax.errors import UserError
    from albef_jax.parallel.signals import Stopped, may_stop, stop_signals
    me, mesh = jax.process_index(), jax.make_mesh((jax.device_count(),), ("data",))
    checkpointer = Checkpointer(workdir, default_config().checkpoint)
    start = checkpointer.latest_step() or 0
    here = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.make_array_from_callback((8,), here, lambda i: np.full(8, start, np.int32)[i])
    if start:
        (state,), _ = checkpointer.restore((state,))
    whole = NamedSharding(mesh, PartitionSpec())
    step_fn = jax.jit(lambda x: (x + 1, x.sum()), out_shardings=(here, whole))
    with stop_signals() as stop:
        print("pid", os.getpid(), "devices", jax.device_count(), flush=True)
        for step in range(start + 1, 1000):
            if me == 1 and step == 5:
                if mode == "error":
                    raise UserError("the images of this process are broken.")
                if mode == "hang":
                    time.sleep(1000)
                if mode in ("killed", "frozen"):
                    os.kill(os.getpid(), signal.SIGKILL if mode == "killed" else signal.SIGSTOP)
            state, total = step_fn(state)
            assert int(total) == 8 * (step - 1)
            time.sleep(0.01 + 0.02 * me)
            if mode == "evaluation" and step == 5:
                print("evaluating", flush=True)
                try:
                    with stop.interrupting():
                        for batch in range(1000):
                            may_stop()
                            assert int(step_fn(state)[1]) == 8 * step
                            time.sleep(0.01)
                except Stopped:
                    print("gave up before batch", batch, flush=True)
            if stop.is_set():
                break
        checkpointer.save(step, (state,), wait=True)
        checkpointer.close()
        print("saved", step, flush=True)
"""


def start(mode, workdir, count=2, devices=4):
    """Starts `PROGRAM` in several processes; the launcher's stdout is a pipe of all lines."""
    return subprocess.Popen(
        [*LAUNCH, "--processes", f"{count}", "--devices-per-process", f"{devices}", "--grace", "4",
         "--", sys.executable, "-c", PROGRAM, mode, workdir], env=os.environ | {
            "PYTHONPATH": f"{ROOT}"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def output_of(launched, lines=""):
    """All that is left of the output, after `lines`, and the seconds that it took."""
    begin = time.monotonic()
    rest = launched.communicate(timeout=100)[0]
    return lines + rest, time.monotonic() - begin


def read_until(launched, text, times):
    """The lines up to the one in which `text` has come so often."""
    lines = ""
    while lines.count(text) < times:
        line = launched.stdout.readline()
        assert line, lines
        lines += line
    return lines


def values_of(lines, word):
    """process -> the number after a word."""
    return {int(process): int(value)
            for process, value in re.findall(rf"^\[(\d)\] {word} (\d+)", lines, re.M)}


def test_sigterm_to_one_stops_both_at_one_step_and_fewer_processes_go_on(tmp_path):
    launched = start("stop", tmp_path)
    lines = read_until(launched, "pid", 2)
    assert lines.count("devices 8") == 2
    time.sleep(0.5)
    os.kill(values_of(lines, "pid")[1], signal.SIGTERM)
    lines, seconds = output_of(launched, lines)
    assert launched.returncode == 0 and seconds < 20, lines
    saved = values_of(lines, "saved")
    assert saved.keys() == {0, 1} and saved[0] == saved[1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{saved[0]}"]

    launched = start("stop", tmp_path, count=1, devices=1)  # Ctrl-C comes through the launcher
    lines = read_until(launched, "pid", 1)
    time.sleep(0.2)
    launched.send_signal(signal.SIGINT)
    lines, _ = output_of(launched, lines)
    assert launched.returncode == 0 and values_of(lines, "saved")[0] > saved[0], lines


def test_an_error_of_one_ends_all_with_its_sentence(tmp_path):
    launched = start("error", tmp_path)
    lines, _ = output_of(launched)
    assert launched.returncode == 1
    assert "[1] albef: the images of this process are broken." in lines
    assert "[0] albef: process 1 of 2 failed and ended all: the images of this process" in lines
    assert "local_processes: process 1 of 2 ended with exit code 2" in lines.splitlines()[-1]
    assert "Traceback" not in lines


@pytest.mark.slow
def test_sigterm_during_an_evaluation_ends_it_in_both(tmp_path):
    launched = start("evaluation", tmp_path)
    lines = read_until(launched, "evaluating", 2)
    os.kill(values_of(lines, "pid")[0], signal.SIGTERM)
    lines, _ = output_of(launched, lines)
    assert launched.returncode == 0, lines
    given_up, saved = values_of(lines, "gave up before batch"), values_of(lines, "saved")
    assert given_up.keys() == {0, 1} and given_up[0] == given_up[1] < 999
    assert saved == {0: 5, 1: 5}


@pytest.mark.slow
@pytest.mark.parametrize("mode, happened, told", [
    ("killed", "was killed by SIGKILL", ""),
    ("absent", "ended with exit code 3", ""),
    ("hang", "ended with exit code 1", "[0] albef: process 1 of 2 failed and ended all: It made no "
     "progress for 3 s"),
    ("frozen", "hangs: the others lost it", "stopped sending heartbeats"),
])
def test_one_that_fails_ends_the_job_within_the_limit(tmp_path, mode, happened, told):
    launched = start(mode, tmp_path)
    lines, seconds = output_of(launched)
    assert launched.returncode == 1 and seconds < 40, lines
    sentence = lines.splitlines()[-1]
    assert sentence.startswith(f"local_processes: process 1 of 2 {happened}"), lines
    assert told in lines and "same command again" in sentence


@pytest.mark.slow
@pytest.mark.parametrize("variables", [
    {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
     "SLURM_PROCID": "{}", "SLURM_LOCALID": "{}", "SLURM_STEP_NUM_NODES": "1"},
    {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
     "OMPI_COMM_WORLD_RANK": "{}", "OMPI_COMM_WORLD_LOCAL_RANK": "{}"},
])
def test_processes_of_a_cluster_find_each_other(variables):
    """The variables as `srun` and `mpirun` set them."""
    code = ("from albef_jax.parallel import processes\n"
            "with processes.joined(timeout=10):\n    import jax\n    print(jax.process_count())")
    children = [subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT}"} | {
            name: value.format(process) for name, value in variables.items()})
        for process in range(2)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["2\n", "2\n"]


@pytest.mark.parametrize("variables", [
    {},
    {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "here", "SLURM_NTASKS": "1",
     "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "1",
     "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
])
def test_one_process_connects_to_nobody(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with processes.joined():
        assert not processes.several() and not jax.distributed.is_initialized()
        assert processes.agree(True) and not processes.agree(False)


@pytest.mark.parametrize("given, sentence", [
    (("here:1", 2, None), "--process (or JAX_PROCESS_ID) is missing; give all of"),
    ((None, 2, 1), "--coordinator (or JAX_COORDINATOR_ADDRESS) is missing; give all of"),
    (("here:1", 2, 2), "--process 2 of --processes 2 does not exist; number them from 0 to 1"),
    (("here:1", 2, -1), "--process -1 of --processes 2 does not exist"),
    (("here", 2, 1), "--coordinator here has no port; write HOST:PORT, such as here:1234"),
    (("here:1", "two", 1), "number of processes is 'two'"),
])
def test_arguments_that_do_not_fit(given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        with processes.joined(*given):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_meets_nobody(process):
    code = ("from albef_jax.parallel import processes\n"
            f"with processes.joined('localhost:1', 2, {process}, timeout=1):\n    pass")
    if not process:
        code = code.replace("localhost:1", "localhost:0")
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT}"}, timeout=60)
    assert done.returncode == processes.ENDED_BY_ANOTHER and time.monotonic() - begin < 30
    assert done.stderr.splitlines()[-1].startswith(
        "albef: The 2 processes did not all meet at localhost:")
