"""Checkpoints across processes: other device counts, kills, full disks, two hosts.

The programs below run beside this one, in processes of their own.
"""

from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

TESTS = Path(__file__).parents[1]


def run_python(code, *arguments, **environment):
    """Runs a program with `sys.argv[1:] = arguments`."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(
                              map(str, (TESTS.parent, TESTS, Path(__file__).parent))),
                          "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True, text=True, timeout=100)


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_restores_onto_another_topology(tmp_path):
    saved = run_python("""
        import sys, jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from test_checkpoint import Checkpointer, options
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        queue = jax.device_put(np.arange(64.).reshape(8, 8),
                               NamedSharding(mesh, PartitionSpec("data")))
        step = jax.device_put(np.int32(5), NamedSharding(mesh, PartitionSpec()))
        checkpoints = Checkpointer(sys.argv[1], options())
        checkpoints.save(5, {"queue": queue, "step": step}, wait=True)
        """, tmp_path, JAX_NUM_CPU_DEVICES="4")
    assert saved.returncode == 0, saved.stderr
    restored = run_python("""
        import sys, jax, numpy as np
        from test_checkpoint import Checkpointer, options
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {"queue": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=here),
                "step": jax.ShapeDtypeStruct((), np.int32, sharding=here)}
        state, step = Checkpointer(sys.argv[1], options()).restore(like)
        assert step == state["step"] == 5 and state["queue"].sharding == here
        np.testing.assert_array_equal(state["queue"], np.arange(64.).reshape(8, 8))
        """, tmp_path)
    assert restored.returncode == 0, restored.stderr


def test_a_kill_in_the_middle_of_a_save(tmp_path):
    code = """
        import os, pathlib, signal, sys
        import jax.numpy as jnp, numpy as np
        from test_checkpoint import Checkpointer, options
        checkpoints = Checkpointer(sys.argv[1], options())
        checkpoints.save(1, {"a": jnp.float32(1)}, wait=True)
        big = np.random.default_rng(0).normal(size=8_000_000).astype(np.float32)
        checkpoints.save(2, {"a": jnp.asarray(big)})
        folder = pathlib.Path(sys.argv[1], "checkpoints")
        while not any("orbax-checkpoint-tmp" in path.name for path in folder.iterdir()):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        """
    killed = run_python(code, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (half,) = (tmp_path / "checkpoints").glob("2.*")  # the kill did come in the middle

    resume = """
        import sys
        import jax.numpy as jnp
        from test_checkpoint import Checkpointer, options
        checkpoints = Checkpointer(sys.argv[1], options())
        state, step = checkpoints.restore({"a": jnp.float32(0)})
        assert (step, float(state["a"])) == (1, 1.0)
        checkpoints.save(2, {"a": jnp.float32(2)}, wait=True)
        assert checkpoints.latest_step() == 2
        """
    resumed = run_python(resume, tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    said = [line for line in resumed.stderr.splitlines() if "half-written" in line]
    assert len(said) == 1 and str(half) in said[0]
    assert steps_on_disk(tmp_path) == [1, 2]


FILL = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from test_checkpoint import Checkpointer, UserError, options
    checkpoints = Checkpointer(sys.argv[1], options(keep_latest=1))
    checkpoints.save(1, {"a": jnp.float32(1)}, wait=True)
    big = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    try:
        checkpoints.save(2, {"a": jnp.asarray(big)})  # the failure comes in the background
        checkpoints.save(3, {"a": jnp.float32(3)})
    except UserError as error:
        print(error)
        checkpoints.close()
    again = Checkpointer(sys.argv[1], options())
    state, step = again.restore({"a": jnp.float32(0)})
    print(step, float(state["a"]))
    """


def assert_told_and_intact(done, workdir, reason):
    assert done.returncode == 0, done.stderr
    sentence, restored = done.stdout.splitlines()
    assert sentence == (
        f"Could not write the checkpoint of step 2 to {workdir / 'checkpoints'} ({reason}); the "
        "previous checkpoint, of step 1, is intact: make room or mend the cause, and run the "
        "same command again to go on.")
    assert restored == "1 1.0"
    assert "Traceback" not in done.stderr


def test_a_full_disk_while_saving(tmp_path):
    """On a real file system of 2 MB, mounted where that is allowed."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        assert_told_and_intact(run_python(FILL, tmp_path), tmp_path, "No space left on device")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_limit_while_saving(tmp_path):
    """The same through the kernel's limit on the size of a file, which needs no rights."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    done = run_python(limit + textwrap.dedent(FILL), tmp_path)
    assert_told_and_intact(done, tmp_path, "File too large")


def test_two_processes_save_and_restore_together(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
        from test_checkpoint import Checkpointer, options
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        rows = np.arange(8.).reshape(4, 2)
        def place(value):
            return jax.make_array_from_callback((4, 2), sharding, lambda index: value[index])
        checkpoints = Checkpointer(sys.argv[1], options(keep_latest=1))
        for step in (1, 2):
            checkpoints.save(step, {"rows": place(rows * step)}, wait=step == 2)
        state, step = Checkpointer(sys.argv[1], options()).restore({"rows": place(rows * 0)})
        mine = np.concatenate([s.data for s in state["rows"].addressable_shards])
        first = 2 * int(sys.argv[3])
        assert step == 2 and (mine == 2 * rows[first:first + 2]).all()
        checkpoints.close()
        """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda rank: run_python(code, tmp_path, port, rank), range(2)))
    for process in done:
        assert process.returncode == 0, process.stderr
    assert steps_on_disk(tmp_path) == [2]
