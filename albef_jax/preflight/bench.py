"""`albef bench`: speed, memory and utilisation of a config's training step."""

import resource
import time
import timeit

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.core.build import build
from albef_jax.models.flops import peak_flops
from albef_jax.parallel.mesh import check_groups, groups_of, local_rows, make_mesh, shard_batch
from albef_jax.preflight.assume import assumed
from albef_jax.run.tables import aligned
from albef_jax.tasks import task_class

WARM_UP = 3


def noise_batch(config, seed=0):
    """A batch without data: the noise of every field of the task, numpy arrays by name."""
    rng, batch = np.random.default_rng(seed), {}
    for field in task_class(config.task).fields(config).values():
        batch |= field.noise(rng, config.batch_size)
    return batch


def bench(config, steps):
    """Times `steps` training steps after a warm-up, compilation apart, and prints the result.

    Args:
      config: a locked config; its data is not read. steps: how many to time, at least 1.

    Returns:
      The printed values by name (seconds, bytes, FLOP/s).

    Raises:
      UserError: a config that cannot be used; a batch that the devices do not divide.
    """
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    config = assumed(config)
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
    result = summary(parts, seconds[WARM_UP:], compile_seconds, compiled)
    if jax.process_index() == 0:
        report(parts, result, metrics)
    return result


def summary(parts, seconds, compile_seconds, compiled):
    """The figures by name; no rates where the task's FLOPs are not known."""
    config, device = parts.config, parts.mesh.local_devices[0]
    median = float(np.median(seconds))
    result = {
        "samples_per_second": config.batch_size / median, "median": median,
        "spread": (min(seconds), max(seconds)), "compile_seconds": compile_seconds,
        "peak_bytes": peak_bytes(device), "program_bytes": program_bytes(compiled)}
    per_sample = sum(parts.task.flops(config).values())
    if not per_sample:
        return result
    rate, known = per_sample * config.batch_size / median / parts.mesh.size, peak_flops(device)
    peak = known or measured_peak(jnp.dtype(dtype_of(config)))
    return result | {"flops_per_sample": per_sample, "flops_per_device": rate, "peak_flops": peak,
                     "peak_is_measured": known is None, "mfu": rate / peak}


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


def program_bytes(compiled):
    """What the compiler reserves for the step: arguments and temporaries, per device."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def report(parts, result, metrics):
    """Prints the figures."""
    config, mesh, (low, high) = parts.config, parts.mesh, result["spread"]
    rows = [
        ("device", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("batch", f"{config.batch_size} in groups of {config.group_size}, "
                  f"{config.accumulation} micro-step(s), {dtype_of(config)}"),
        ("samples/s", f"{result['samples_per_second']:.2f}"),
        ("step time", f"median {result['median']:.4f} s (min {low:.4f}, max {high:.4f})"),
        ("compile time", f"{result['compile_seconds']:.1f} s"),
        ("peak memory", f"{result['peak_bytes'] / 2**30:.2f} GiB (the step's arguments and "
                        f"temporaries: {result['program_bytes'] / 2**30:.2f} GiB)")]
    if "mfu" in result:
        source = "measured matrix product" if result["peak_is_measured"] else "datasheet"
        rows += [
            ("work", f"{result['flops_per_sample'] / 1e9:.2f} GFLOP/sample as the public code "
                     "computes it"),
            ("rate", f"{result['flops_per_device'] / 1e9:.1f} GFLOP/s/device"),
            ("MFU", f"{result['mfu']:.1%} of {result['peak_flops'] / 1e12:.3f} TFLOP/s "
                    f"({source})")]
    if "loss" in metrics:
        rows.append(("last loss", f"{float(metrics['loss']):.4f}"))
    print(aligned(rows))
