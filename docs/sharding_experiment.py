"""The same training on meshes of 8 simulated devices: losses, and the state on each device.

    JAX_NUM_CPU_DEVICES=8 JAX_PLATFORMS=cpu python docs/sharding_experiment.py

Prints the tables of docs/scaling.md. Losses are of a small model in float32 with dropout; sizes of
the official models come from their shapes, nothing is allocated.
"""

import pathlib

import jax
import numpy as np

from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.parallel.mesh import groups_of, make_mesh, shard_batch
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.bench import noise_batch
from albef_jax.preflight.estimate import device_bytes
from albef_jax.preflight.hlo import Program

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ONE = (1, 1, 1)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
MESHES = (ONE, (8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2))
SMALL = ("batch_size=32", "group_size=2", "model.dtype=float32", "model.vit_depth=2",
         "model.text_layers=1", "model.fusion_layers=2", "model.vit_width=64",
         "model.text_width=64", "model.text_mlp_width=128", "model.vit_heads=4",
         "model.text_heads=4", "data.vocab_size=1024", "objective.queue_size=256",
         "optimizer.warmup_steps=1", "optimizer.peak_lr=1e-3", "steps=5")
STEPS = 5


def parts_on(config, axes):
    """The `Parts` of a config on data x fsdp x model devices."""
    config = assumed(config)
    config.mesh.update(dict(zip(("data", "fsdp", "model"), axes)))
    devices = jax.devices()[:np.prod(axes)]
    return build(config, make_mesh(config.mesh, devices, groups_of(config)))


def losses(config, axes):
    """The losses of the first steps."""
    parts = parts_on(config, axes)
    state, found = parts.create_state(), []
    for number in range(STEPS):
        batch = shard_batch(noise_batch(parts.config, seed=number), parts.mesh)
        state, metrics = parts.step(state, batch, None)
        found.append(float(metrics["loss"]))
    return np.array(found)


def collectives(config, axes):
    """Kind -> [how many of them run in a step, bytes of the arrays that are exchanged]."""
    parts, found = parts_on(config, axes), {}
    compiled = parts.step.lower(parts.state, parts.batch_spec, None).compile()
    for one in Program(compiled.as_text()).collectives():
        row = found.setdefault(one.kind, [0, 0])
        row[0] += one.times
        row[1] += one.times * one.payload
    return found


def group_rows(config):
    """What travels where groups have devices of their own, and where they span several."""
    for group_size in (4, 16, 32):
        grouped = config.copy_and_resolve_references()
        grouped.group_size = group_size
        found = collectives(grouped, (8, 1, 1))
        yield (f"{32 // group_size} of {group_size}", *(
            f"{found[kind][0]} ({found[kind][1] / 1e3:.0f} kB)" if kind in found else "-"
            for kind in KINDS))


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
    table([("groups on 8 devices", *KINDS), *group_rows(small)])
    rows = [("GB of state per device", "ViT-B (paper)", "ViT-L (large)", "ViT-H (huge)")]
    models = [load_config(f"{CONFIGS}/pretrain_14m.py:{name}")
              for name in ("paper", "large", "huge")]
    for axes in MESHES:
        rows.append((" x ".join(map(str, axes)),
                     *(f"{device_bytes(parts_on(config, axes).state) / 1e9:.2f}"
                       for config in models)))
    table(rows)


if __name__ == "__main__":
    main()
