"""launch/local_processes.py with commands of no weight."""

from pathlib import Path
import signal
import subprocess
import sys

import pytest

LAUNCH = [sys.executable, Path(__file__).parents[2] / "launch" / "local_processes.py"]


def launch(code, *options):
    """Runs a Python program in two processes; `me` is the number of the process."""
    code = f"import os, signal, sys, time; me = int(os.environ['JAX_PROCESS_ID']); {code}"
    return subprocess.run([*LAUNCH, *options, "--", sys.executable, "-c", code],
                          capture_output=True, text=True, timeout=60)


def test_all_end_well():
    done = launch("print('of', os.environ['JAX_NUM_PROCESSES'], 'with', "
                  "os.environ['JAX_NUM_CPU_DEVICES'], os.environ['JAX_COORDINATOR_ADDRESS'])",
                  "--devices-per-process", "4")
    assert done.returncode == 0 and not done.stderr
    address = done.stdout.split()[-1]
    assert sorted(done.stdout.splitlines()) == [
        f"[{me}] of 2 with 4 {address}" for me in range(2)]
    assert int(address.removeprefix("localhost:")) > 0


@pytest.mark.parametrize("code, happened", [
    ("sys.exit(3 if me else 0)", "process 1 of 2 ended with exit code 3: see its last lines"),
    ("os.kill(os.getpid(), signal.SIGKILL) if me else time.sleep(30)",
     "process 1 of 2 was killed by SIGKILL: see if memory ran out"),
    # The codes of those that end because of another one do not name them.
    ("time.sleep(0.5 * me); sys.exit(2 if me else 75)", "process 1 of 2 ended with exit code 2"),
    ("time.sleep(30) if me else os.abort()", "process 1 of 2 hangs: the others lost it"),
])
def test_one_that_fails_is_named(code, happened):
    done = launch(code, "--grace", "1")
    (sentence,) = done.stderr.splitlines()
    assert done.returncode == 1 and sentence.startswith(f"local_processes: {happened}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all(number):
    code = ("import signal, time; signal.signal(%d, lambda *_: exit(print('told')))\n"
            "print('ready'); time.sleep(30)" % number)
    launched = subprocess.Popen([*LAUNCH, "--", sys.executable, "-c", code], text=True,
                                stdout=subprocess.PIPE)
    for _ in range(2):
        assert "ready" in launched.stdout.readline()
    launched.send_signal(number)
    assert launched.communicate(timeout=30)[0].count("told") == 2
    assert launched.returncode == 0


def test_dry_run_starts_nothing(tmp_path):
    mark = tmp_path / "a file"
    done = subprocess.run([*LAUNCH, "--dry-run", "--processes", "3", "--", "touch", mark],
                          capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not mark.exists()
    assert [f"JAX_PROCESS_ID={me}" in line for me, line in enumerate(lines)] == [True] * 3
    assert all(line.endswith(f"touch '{mark}'") for line in lines)


@pytest.mark.parametrize("command, code, sentence", [
    (["--", "no such program"], 127, "The command 'no such program' cannot be started"),
    ([], 2, "the command is missing"),
])
def test_a_command_that_cannot_run(command, code, sentence):
    done = subprocess.run([*LAUNCH, *command], capture_output=True, text=True)
    assert done.returncode == code and sentence in done.stderr
