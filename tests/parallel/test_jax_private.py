"""What we use of JAX without a public name is still there, and does what we think it does."""

import socket
import subprocess
import sys

import jax
from jax._src import clusters, distributed
import pytest

from albef_jax.parallel import jax_private

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "host", "SLURM_NTASKS": "4",
         "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
# Two processes: what one says the other reads.
TALK = """
import sys, jax
from albef_jax.parallel.jax_private import store
me = int(sys.argv[2])
assert store() is None
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, me)
store().key_value_set(f"albef/{me}", "old")
store().key_value_set(f"albef/{me}", f"from {me}", allow_overwrite=True)
store().wait_at_barrier("said", 60_000)
assert sorted(store().key_value_dir_get("albef/")) == [("albef/0", "from 0"), ("albef/1", "from 1")]
store().wait_at_barrier("read", 60_000)
store().key_value_delete(f"albef/{me}")
store().wait_at_barrier("deleted", 60_000)
assert store().key_value_dir_get("albef/") == []
try:
    store().key_value_set("once", "a"); store().key_value_set("once", "b")
except jax.errors.JaxRuntimeError:
    print("ok")
jax.distributed.shutdown()
"""


def test_the_store_is_that_of_the_process():
    assert jax_private.store() is None
    assert jax.distributed.is_initialized() == (distributed.global_state.client is not None)


def test_what_the_store_does():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    talkers = [subprocess.Popen([sys.executable, "-c", TALK, port, str(me)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for me in range(2)]
    for talker in talkers:
        out, errors = talker.communicate(timeout=120)
        assert "ok" in out and talker.returncode == 0, errors


def test_clusters_have_the_names_that_we_know():
    names = {env.name for env in clusters.ClusterEnv._cluster_types}
    assert set(jax_private.CLUSTERS) <= names


@pytest.mark.parametrize("environment, size", [
    ({}, 1), (SLURM, 4), ({**SLURM, "SLURM_NTASKS": "1"}, 1),
    ({"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0",
      "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, 3)])
def test_the_size_of_a_cluster(monkeypatch, environment, size):
    for name in ({*SLURM, "OMPI_MCA_orte_hnp_uri"} - environment.keys()):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert jax_private.cluster_size() == size
