"""`albef bench`: speed, memory and utilisation of a config's training step."""

import json
import resource
import sys
import time
import timeit

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.core.build import build
from albef_jax.files import check_out, write
from albef_jax.models.flops import peak_flops
from albef_jax.parallel.mesh import check_groups, groups_of, local_rows, make_mesh, shard_batch
from albef_jax.preflight import breakdown
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.roofline import GIB
from albef_jax.run.tables import aligned
from albef_jax.tasks import task_class

WARM_UP = 3


def noise_batch(config, seed=0):
    """A batch without data: the noise of every field of the task, numpy arrays by name."""
    rng, batch = np.random.default_rng(seed), {}
    for field in task_class(config.task).fields(config).values():
        batch |= field.noise(rng, config.batch_size)
    return batch


def bench(config, steps, with_parts=False, json_file=""):
    """Times `steps` training steps after a warm-up, compilation apart, and prints the result.

    Args:
      config: a locked config; its data is not read. steps: how many to time, at least 1.
      with_parts: also print where their time goes, by part of the model.
      json_file: also write what `measured` says there.

    Raises:
      UserError: a config or file that cannot be used; a batch that the devices do not divide.
    """
    if json_file:
        check_out(json_file, option="--json")
    found = measured(assumed(config), steps, with_parts)
    if jax.process_index() == 0:
        print(table(found))
        if with_parts and not found["parts"]:
            print(f"breakdown: {breakdown.HIDDEN}", file=sys.stderr)
        elif with_parts:
            print(breakdown.table({(row["part"], row["pass"]): row["seconds"]
                                   for row in found["parts"]}))
        if json_file:
            write(json_file, json.dumps(found, indent=1))


def measured(config, steps, with_parts):
    """What `steps` steps of a config take, as JSON has it; times in seconds, memory in bytes."""
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    mesh = make_mesh(config.mesh, groups=groups_of(config))
    check_groups(config, mesh)
    parts = build(config, mesh)
    rows = local_rows(mesh, config.batch_size)
    batch = shard_batch({name: x[rows] for name, x in noise_batch(config).items()}, mesh)
    state = parts.create_state()
    begin = time.perf_counter()
    compiled = parts.step.lower(state, batch, None).compile()
    compile_seconds = time.perf_counter() - begin
    seconds, metrics = [], {}
    for _ in range(WARM_UP + steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch, None)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    device, memory = mesh.local_devices[0], compiled.memory_analysis()
    found = dict(
        device=device.device_kind, devices=mesh.size, batch=config.batch_size,
        group=config.group_size, accumulation=config.accumulation, dtype=dtype_of(config),
        seconds=seconds[WARM_UP:], compile_seconds=compile_seconds, peak_bytes=peak_bytes(device),
        program_bytes=memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        samples_per_second=config.batch_size / float(np.median(seconds[WARM_UP:])))
    if per_sample := sum(parts.task.flops(config).values()):
        known = peak_flops(device)
        found |= dict(flops_per_sample=per_sample, datasheet=bool(known),
                      peak_flops=known or measured_peak(jnp.dtype(dtype_of(config))))
    if "loss" in metrics:
        found["loss"] = float(metrics["loss"])
    if with_parts:
        found["parts"] = [
            {"part": part, "pass": name, "seconds": own} for (part, name), own in
            breakdown.measured(compiled, state, batch, steps).items()]
    return found


def table(found):
    """What is printed, names and texts; no rates where the task's FLOPs are not known."""
    seconds = found["seconds"]
    rows = [
        ("device", f"{found['devices']} x {found['device']}"),
        ("batch", f"{found['batch']} in groups of {found['group']}, "
                  f"{found['accumulation']} micro-step(s), {found['dtype']}"),
        ("samples/s", f"{found['samples_per_second']:.2f}"),
        ("step time", f"median {np.median(seconds):.4f} s (min {min(seconds):.4f}, "
                      f"max {max(seconds):.4f})"),
        ("compile time", f"{found['compile_seconds']:.1f} s"),
        ("peak memory", f"{found['peak_bytes'] / GIB:.2f} GiB (the step's arguments and "
                        f"temporaries: {found['program_bytes'] / GIB:.2f} GiB)")]
    if per_sample := found.get("flops_per_sample"):
        peak = found["peak_flops"]
        rate = per_sample * found["samples_per_second"] / found["devices"]
        rows += [
            ("work", f"{per_sample / 1e9:.2f} GFLOP/sample as the public code computes it"),
            ("rate", f"{rate / 1e9:.1f} GFLOP/s/device"),
            ("MFU", f"{rate / peak:.1%} of {peak / 1e12:.3f} TFLOP/s "
                    f"({'datasheet' if found['datasheet'] else 'measured matrix product'})")]
    if "loss" in found:
        rows.append(("last loss", f"{found['loss']:.4f}"))
    return aligned(rows)


def dtype_of(config):
    """The type of a config's matrix products, as far as it states one."""
    return config.model.get("dtype", "float32")


def measured_peak(dtype, size=2048, repeats=5):
    """FLOP/s of the best of a few square matrix products, for devices without a datasheet."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda a: a @ a)
    product(x)  # compiles
    seconds = timeit.repeat(lambda: product(x).block_until_ready(), number=1, repeat=repeats)
    return 2 * size**3 / min(seconds)


def peak_bytes(device):
    """Most memory ever in use: of the device, or of the process where the device is the CPU."""
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (device.memory_stats() or {}).get("peak_bytes_in_use", process)
