"""The same training on meshes of 8 simulated devices: losses, and the state on each device.

    JAX_NUM_CPU_DEVICES=8 JAX_PLATFORMS=cpu python docs/sharding_experiment.py

Prints the tables of docs/scaling.md. Losses are of a small model in float32 with dropout; sizes of
the official models come from their shapes, nothing is allocated.
"""

import pathlib

import jax
import numpy as np

from albef_jax.preflight.bench import random_batch
from albef_jax.config import load_config
from albef_jax.preflight.estimate import device_bytes
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import abstract_state, create_state
from albef_jax.parallel.mesh import make_mesh, shard_batch
from albef_jax.core.step import step_of
from albef_jax.tasks import make_task

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ONE = (1, 1, 1)
MESHES = (ONE, (8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2))
SMALL = ("batch_size=32", "group_size=2", "model.dtype=float32", "model.vit_depth=2",
         "model.text_layers=1", "model.fusion_layers=2", "model.vit_width=64",
         "model.text_width=64", "model.text_mlp_width=128", "model.vit_heads=4",
         "model.text_heads=4", "model.vocab_size=1024", "objective.queue_size=256",
         "optimizer.warmup_steps=1", "optimizer.peak_lr=1e-3")
STEPS = 5


def parts(config, axes):
    """Mesh, task and optimizer of a config on data x fsdp x model devices."""
    config = config.copy_and_resolve_references()
    config.mesh.update(dict(zip(("data", "fsdp", "model"), axes)))
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, STEPS))
    mesh = make_mesh(config.mesh, jax.devices()[:np.prod(axes)])
    return mesh, make_task(config), optimizer


def losses(config, axes):
    """The losses of the first steps."""
    mesh, task, optimizer = parts(config, axes)
    state = create_state(task, optimizer, config.seed, mesh, config.rules)
    step = step_of(config, task, optimizer, mesh)
    found = []
    for number in range(STEPS):
        batch = shard_batch(random_batch(config, seed=number), mesh)
        state, metrics = step(state, batch, None)
        found.append(float(metrics["loss"]))
    return np.array(found)


def state_bytes(config, axes):
    """Bytes of the state on one device."""
    mesh, task, optimizer = parts(config, axes)
    return device_bytes(abstract_state(task, optimizer, mesh, config.rules))


def table(rows):
    """Prints rows as Markdown, the first as heads."""
    for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print(f"| {' | '.join(row)} |")
    print()


def main():
    small = load_config(CONFIGS / "bench_tiny.py", [f"--config.{value}" for value in SMALL])
    reference = losses(small, ONE)
    rows = [("data x fsdp x model", "largest relative difference of a loss to one device")]
    for axes in MESHES[1:]:
        difference = np.max(np.abs(losses(small, axes) / reference - 1))
        rows.append((" x ".join(map(str, axes)), f"{difference:.1e}"))
    table(rows)
    rows = [("GB of state per device", "ViT-B (paper)", "ViT-L (large)", "ViT-H (huge)")]
    models = [load_config(f"{CONFIGS}/pretrain_14m.py:{name}")
              for name in ("paper", "large", "huge")]
    for axes in MESHES:
        rows.append((" x ".join(map(str, axes)),
                     *(f"{state_bytes(config, axes) / 1e9:.2f}" for config in models)))
    table(rows)


if __name__ == "__main__":
    main()
