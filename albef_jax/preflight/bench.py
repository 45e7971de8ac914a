"""`albef bench`: speed, memory and utilisation of a config's training step."""

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.models import flops
from albef_jax.config import check_model
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import create_state
from albef_jax.parallel.mesh import batch_shards, check_groups, local_rows, make_mesh, shard_batch
from albef_jax.core.step import step_of
from albef_jax.tasks import make_task, task_class

WARM_UP = 3
SHORTEST_TEXT, SHORTEST_ANSWER = 10, 3


def random_batch(config, seed=0):
    """A batch of noise images, random words padded like captions, and fields; numpy."""
    rng, task = np.random.default_rng(seed), task_class(config)
    b, data, size = config.batch_size, config.data, config.model.image_size
    views = (task.views,) if task.views > 1 else ()
    image = rng.integers(0, 256, (b, *views, size, size, 3), np.uint8)
    ids, mask = random_texts(rng, config.model, (b,), data.text_length, SHORTEST_TEXT)
    batch = {"image": image, "text_ids": ids, "text_mask": mask,
             "image_id": np.arange(b, dtype=np.int32)}
    if "label" in task.needs:
        batch["label"] = rng.integers(0, task.classes, b, np.int32)
    if "answers" in task.needs:
        shape = b, data.max_answers
        answer_ids, answer_mask = random_texts(rng, config.model, shape, data.answer_length,
                                               SHORTEST_ANSWER)
        weight = rng.dirichlet(np.ones(data.max_answers), b).astype(np.float32)
        batch |= {"answer_ids": answer_ids, "answer_mask": answer_mask, "answer_weight": weight}
    return batch


def random_texts(rng, model, shape, length, shortest):
    """Ids and mask int32 `[*shape, length]`: [CLS] and random words, padded."""
    words = rng.integers(min(1000, model.vocab_size // 2), model.vocab_size, (*shape, length),
                         np.int32)
    lengths = rng.integers(min(shortest, length), length + 1, (*shape, 1))
    mask = (np.arange(length) < lengths).astype(np.int32)
    ids = np.where(mask == 1, words, model.pad_id).astype(np.int32)
    ids[..., 0] = model.cls_id
    return ids, mask


def bench(config, steps):
    """Times `steps` training steps after a warm-up, compilation apart, and prints the result.

    Args:
      config: a locked config; its data is not read. steps: how many to time, at least 1.

    Returns:
      The printed values by name (seconds, bytes, FLOP/s).
    """
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    mesh = make_mesh(config.mesh)
    check_model(config)
    check_groups(config.batch_size, config.group_size, config.accumulation, batch_shards(mesh))
    task = make_task(config)
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, max(
        config.steps, 1)))
    state = create_state(task, optimizer, config.seed, mesh, config.rules)
    rows = local_rows(mesh, config.batch_size)
    batch = shard_batch({key: x[rows] for key, x in random_batch(config).items()}, mesh)
    step = step_of(config, task, optimizer, mesh)
    begin = time.perf_counter()
    compiled = step.lower(state, batch, None).compile()
    compile_seconds = time.perf_counter() - begin
    seconds, last = [], None
    for _ in range(WARM_UP + steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch, None)
        last = float(metrics["loss"])
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - begin)
    result = summary(config, mesh, seconds[WARM_UP:], compile_seconds, compiled)
    if jax.process_index() == 0:
        report(config, mesh, result, last)
    return result


def summary(config, mesh, seconds, compile_seconds, compiled):
    """The measured and derived figures."""
    median = float(np.median(seconds))
    per_sample = flops.step_flops(config)["total"]
    rate = per_sample * config.batch_size / median / mesh.size
    device = mesh.local_devices[0]
    peak = flops.peak_flops(device) or measured_peak(jnp.dtype(config.model.dtype))
    return {
        "samples_per_second": config.batch_size / median, "median": median,
        "spread": (min(seconds), max(seconds)), "compile_seconds": compile_seconds,
        "peak_bytes": peak_bytes(device), "program_bytes": program_bytes(compiled),
        "flops_per_sample": per_sample, "flops_per_device": rate, "peak_flops": peak,
        "peak_is_measured": flops.peak_flops(device) is None, "mfu": rate / peak}


def measured_peak(dtype, size=2048, repeats=5):
    """FLOP/s of the best of a few square matrix products, for devices without a datasheet."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(x))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(product(x))
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def peak_bytes(device):
    """Most memory ever in use: of the device, or of the process where the device is the CPU."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def program_bytes(compiled):
    """What the compiler reserves for the step: arguments and temporaries, per device."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def report(config, mesh, result, loss):
    """Prints the figures, one per line."""
    low, high = result["spread"]
    device = mesh.devices.flat[0]
    source = "measured matrix product" if result["peak_is_measured"] else "datasheet"
    for name, value in (
        ("device", f"{mesh.size} x {device.device_kind}"),
        ("batch", f"{config.batch_size} in groups of {config.group_size}, "
                  f"{config.accumulation} micro-step(s), {config.model.dtype}"),
        ("samples/s", f"{result['samples_per_second']:.2f}"),
        ("step time", f"median {result['median']:.4f} s (min {low:.4f}, max {high:.4f})"),
        ("compile time", f"{result['compile_seconds']:.1f} s"),
        ("peak memory", f"{result['peak_bytes'] / 2**30:.2f} GiB (the step's arguments and "
                        f"temporaries: {result['program_bytes'] / 2**30:.2f} GiB)"),
        ("work", f"{result['flops_per_sample'] / 1e9:.2f} GFLOP/sample as the public code "
                 "computes it"),
        ("rate", f"{result['flops_per_device'] / 1e9:.1f} GFLOP/s/device"),
        ("MFU", f"{result['mfu']:.1%} of {result['peak_flops'] / 1e12:.3f} TFLOP/s ({source})"),
        ("last loss", f"{loss:.4f}"),
    ):
        print(f"{name:13s} {value}")
