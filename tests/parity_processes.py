"""One training step of several real processes against a recording with one process per group.

    python launch/local_processes.py --processes 2 -- \\
        python tests/parity_processes.py tests/golden/pretrain_2proc

Every process holds the rows and draws of its own groups only; prints and exits as `parity.py`.
"""

import sys

import jax
from jax.sharding import PartitionSpec
import numpy as np
import parity
from parity import EXACT, GRADIENT, LOSS, STATE

from albef_jax.parallel import processes
from albef_jax.parallel import mesh as sharding
from albef_jax.core import step


def main():
    """Compares losses, averaged gradients and queues; every process has all of them."""
    jax.config.update("jax_default_matmul_precision", "highest")
    report, case = parity.Report(), parity.Case(sys.argv[1])
    groups, outputs = case.meta["world_size"], case.arrays("outputs")
    mesh = sharding.make_mesh()
    assert jax.process_count() == groups == mesh.size
    optimizer, task = parity.record_gradients(), case.task(case.inputs["alpha"])
    train_step = step.make_train_step(
        task, optimizer, mesh, seed=0, group_size=case.config.group_size,
        momentum=case.config.objective.momentum)

    def place(tree, spec):
        where = jax.sharding.NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.make_array_from_callback(
            x.shape, where, np.asarray(x).__getitem__), tree)

    rows = sharding.local_rows(mesh, case.config.batch_size)
    assert len(rows) == case.config.group_size
    batch = sharding.shard_batch({k: v[rows] for k, v in case.batch().items()}, mesh)
    after, metrics = train_step(place(case.state(optimizer), PartitionSpec()), batch,
                                place(case.draws(groups), PartitionSpec(("data", "fsdp"))))
    for name, recorded in zip(("mlm", "itc", "itm"), outputs["losses"].mean(axis=0)):
        report.check(f"mean loss {name}", metrics[name], recorded, LOSS)
    parity.check_tensors(report, "grad ", case.official(jax.device_get(after.opt_state)),
                         case.arrays("grads_averaged"), GRADIENT)
    final = case.official_state(after.params, after.teacher, after.memory)
    for name in ("image_queue", "text_queue", "queue_ptr"):
        report.check(f"{name}_after", final[name], outputs[f"{name}_after"],
                     EXACT if name == "queue_ptr" else STATE)
    print(f"{report.compared} compared, {report.missed} missed")
    return 1 if report.missed or not report.compared else 0


if __name__ == "__main__":
    with processes.joined():
        code = main()
    sys.exit(code)
