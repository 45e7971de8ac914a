"""One training step of several real processes against a recording with one process per group.

    python launch/local_processes.py --processes 2 -- \\
        python tests/parity_processes.py tests/golden/pretrain_2proc

Every process holds the rows and draws of its own groups only; prints and exits as `parity.py`.
"""

import json
import pathlib
import sys

import jax
from jax.sharding import PartitionSpec
import numpy as np

from albef_jax.parallel import mesh as sharding
from albef_jax.parallel import processes
from albef_jax.parallel.axes import BATCH_AXES
from parity_case import Case
from parity_pretrain import METRICS, check_averages
from parity_report import LOSS, Report


def main():
    """Compares losses, averaged gradients and queues; every process has all of them."""
    jax.config.update("jax_default_matmul_precision", "highest")
    folder = pathlib.Path(sys.argv[1])
    meta = json.loads((folder / "meta.json").read_text())
    report, case, mesh = Report(meta), Case(folder, meta), sharding.make_mesh()
    assert jax.process_count() == meta["world_size"] == mesh.size
    train_step, optimizer = case.trainer([1e-3], mesh)

    def place(tree, spec):
        where = jax.sharding.NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.make_array_from_callback(
            x.shape, where, np.asarray(x).__getitem__), tree)

    rows = sharding.local_rows(mesh, case.config.batch_size)
    assert len(rows) == case.config.group_size
    batch = sharding.shard_batch({k: v[rows] for k, v in case.batch().items()}, mesh)
    after, metrics = train_step(place(case.state(optimizer), PartitionSpec()), batch,
                                place(case.draws(), PartitionSpec(BATCH_AXES)))
    for name, recorded in zip(METRICS, case.outputs["losses"].mean(axis=0), strict=True):
        report.check(f"mean loss {name}", metrics[name], recorded, LOSS)
    check_averages(case, report, after)
    print(f"{report.compared} compared, {report.missed} missed")
    return 1 if report.missed or not report.compared else 0


if __name__ == "__main__":
    with processes.joined():
        code = main()
    sys.exit(code)
