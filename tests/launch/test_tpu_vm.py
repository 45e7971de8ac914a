"""launch/tpu_vm.sh against a gcloud that runs remote commands in folders instead of machines."""

from pathlib import Path
import shlex
import time

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SETTINGS = {"TPU_NAME": "albef", "ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16"}
WHERE = ["--zone=us-west4-a"]
ARGUMENTS = ["--config", "my configs/a.py", "--workdir", 'gs://b/it\'s "x" $HOME;`date`',
             "--config.data.tokenizer="]
# Every machine is a folder NODE.WORKER, and the home of what runs there.
GCLOUD = """
import subprocess
command = dict(word.split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
if sys.argv[4] == "ssh":
    workers = ["0", "1"] if command["--worker"] == "all" else [command["--worker"]]
    for worker in workers:
        home = os.path.join(os.environ["HOME"], f"{sys.argv[5]}.{worker}")
        os.makedirs(home, exist_ok=True)
        subprocess.run(["bash", "-c", command["--command"]], cwd=home, check=True)
elif sys.argv[3:5] == ["queued-resources", "describe"]:
    states = open("states").read().split()
    open("states", "w").write(" ".join(states[1:] or states))  # the last one stays
    print(states[0])
"""


def machine(shell, node, worker, job):
    """A machine on which `albef` is installed; what it does is Python."""
    home = f"{node}.{worker}"
    launch = shell.folder / home / "albef" / "launch"
    launch.parent.mkdir(parents=True)
    launch.symlink_to(LAUNCH)
    shell.program(f"{home}/albef/.venv/bin/albef", job)


def until(condition):
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("did not happen in five seconds")


def albef_calls(shell):
    return [call for call in shell.calls() if call[0] == "albef"]


def test_create_and_queue(shell):
    shell.program("gcloud")
    flags = {"GCLOUD_FLAGS": "--spot --network=mine", "PROJECT": "my-project"} | SETTINGS
    assert shell.run("tpu_vm.sh", "create", **flags)[0] == 0
    assert shell.run("tpu_vm.sh", "queue", **flags)[0] == 0
    assert shell.run("tpu_vm.sh", "queue", **flags, SLICES="2", RUNTIME="mine")[0] == 0
    end = ["--spot", "--network=mine", *WHERE, "--project=my-project"]
    kind = "--accelerator-type=v5litepod-16"
    tpus = ["gcloud", "compute", "tpus"]
    assert shell.calls() == [
        [*tpus, "tpu-vm", "create", "albef", kind, "--version=v2-alpha-tpuv5-lite", *end],
        [*tpus, "queued-resources", "create", "albef", "--node-id=albef", kind,
         "--runtime-version=v2-alpha-tpuv5-lite", *end],
        [*tpus, "queued-resources", "create", "albef", "--node-count=2", "--node-prefix=albef",
         kind, "--runtime-version=mine", *end]]


@pytest.mark.parametrize("kind, runtime", [
    ("v6e-64", "v2-alpha-tpuv6e"), ("v5p-128", "v2-alpha-tpuv5"), ("v4-32", "tpu-ubuntu2204-base")])
def test_software_version_follows_the_type(shell, kind, runtime):
    _, out, _ = shell.run("tpu_vm.sh", "--dry-run", "create", **SETTINGS | {"TPU_TYPE": kind})
    assert f"--version={runtime}" in shlex.split(out)


def test_unknown_type_needs_a_runtime(shell):
    code, out, err = shell.run("tpu_vm.sh", "--dry-run", "create", **SETTINGS | {"TPU_TYPE": "x"})
    assert (code, out) == (2, "") and "TPU_TYPE x; set RUNTIME" in err


def test_install_copies_the_repository_to_every_slice(shell):
    shell.program("gcloud", """
if sys.argv[4] == "scp":
    import tarfile
    names = tarfile.open(sys.argv[5]).getnames()
    assert {"setup.py", "launch/tpu_vm.sh"} <= set(names) and not any(
        name.startswith((".git/", ".venv/")) for name in names)
""")
    code, _, err = shell.run("tpu_vm.sh", "install", **SETTINGS, SLICES="2")
    assert code == 0, err
    calls = [call[4:6] + call[6:7] for call in shell.calls()]
    assert [call[0] for call in calls] == ["scp", "scp", "ssh", "ssh"]
    assert [call[2] for call in calls[:2]] == ["albef-0:albef.tar.gz", "albef-1:albef.tar.gz"]
    assert [call[1] for call in calls[2:]] == ["albef-0", "albef-1"]
    assert not list(shell.folder.glob("*/albef.tar.gz"))


def test_run_starts_every_machine_with_the_very_arguments(shell):
    shell.program("gcloud", GCLOUD)
    for worker in "01":
        machine(shell, "albef", worker,
                "open('cache', 'w').write(os.environ['JAX_COMPILATION_CACHE_DIR'])")
    code, _, err = shell.run("tpu_vm.sh", "run", *ARGUMENTS, **SETTINGS, COMPILE_CACHE="gs://b/c")
    assert code == 0, err
    until(lambda: len(albef_calls(shell)) == 2)
    assert albef_calls(shell) == [["albef", "train", *ARGUMENTS]] * 2
    caches = [shell.folder / f"albef.{worker}" / "albef" / "cache" for worker in "01"]
    until(lambda: all(cache.exists() and cache.read_text() == "gs://b/c" for cache in caches))


def test_second_run_is_refused_and_stop_waits_for_the_checkpoint(shell):
    shell.program("gcloud", GCLOUD)
    for worker in "01":
        machine(shell, "albef", worker, """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open("saved", "w").close()))
print("running", flush=True)
time.sleep(20)
""")
    logs = [shell.folder / f"albef.{worker}" / "albef.log" for worker in "01"]
    shell.run("tpu_vm.sh", "run", *ARGUMENTS, **SETTINGS)
    until(lambda: all(log.exists() and "running" in log.read_text() for log in logs))
    code, _, err = shell.run("tpu_vm.sh", "run", *ARGUMENTS, **SETTINGS)
    assert code != 0 and "stop it first" in err
    code, out, _ = shell.run("tpu_vm.sh", "stop", **SETTINGS)
    assert code == 0 and out.count("ended with exit code 143") == 2
    assert all((log.parent / "albef" / "saved").exists() for log in logs)


def test_run_requeue_replaces_a_slice_that_was_taken_away(shell):
    shell.program("gcloud", GCLOUD)
    for worker in "01":
        machine(shell, "albef", worker, "")
    (shell.folder / "states").write_text("SUSPENDED PROVISIONING ACTIVE")
    code, _, err = shell.run("tpu_vm.sh", "run", "--requeue", *ARGUMENTS, **SETTINGS, PAUSE="0")
    assert code == 0 and "ended with exit code 0" in err
    actions = [call[3:5] for call in shell.calls() if call[0] == "gcloud"]
    assert actions[:5] == [
        ["tpu-vm", "ssh"], ["queued-resources", "describe"], ["queued-resources", "delete"],
        ["queued-resources", "create"], ["queued-resources", "describe"]]


def test_logs_and_delete(shell):
    shell.program("gcloud")
    for words in (["logs"], ["logs", "3"], ["logs", "all"], ["delete"], ["delete", "--queued"]):
        assert shell.run("tpu_vm.sh", *words, **SETTINGS)[0] == 0
    calls = [call[3:] for call in shell.calls()]
    assert [call[3] for call in calls[:3]] == ["--worker=0", "--worker=3", "--worker=all"]
    assert "-F albef.log" in calls[0][4]
    assert calls[3] == ["tpu-vm", "delete", "albef", "--quiet", *WHERE]
    assert calls[4] == ["queued-resources", "delete", "albef", "--force", "--quiet", *WHERE]


def test_dry_run_prints_the_commands_and_runs_none(shell):
    shell.program("gcloud")
    printed = []
    for words in (["queue"], ["run", *ARGUMENTS], ["stop"]):
        code, out, _ = shell.run("tpu_vm.sh", *words, "--dry-run", **SETTINGS)
        assert code == 0
        printed.append(shlex.split(out)[1:] if "$'" not in out else out)
    assert shell.calls() == []
    shell.run("tpu_vm.sh", "queue", **SETTINGS)
    assert shell.calls()[0][1:] == printed[0]
