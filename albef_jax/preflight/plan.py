"""`albef plan`: memory, work, communication, time and cost of a config before it runs.

The real step is compiled for the target, with shapes instead of arrays: no parameter is made, no
data is read, and no accelerator is needed. See `hlo` for how the program is read and `roofline`
for how time is predicted.
"""

import contextlib
import sys
import threading
import time

import jax
from jax.sharding import AbstractMesh, AxisType

from albef_jax.preflight import tables
from albef_jax.preflight import roofline
from albef_jax.preflight.ahead import compile_for_tpu, compile_here
from albef_jax.config import check_model, check_values
from albef_jax.errors import UserError
from albef_jax.preflight.estimate import kept_bytes, memory_estimate, state_bytes, work_estimate
from albef_jax.preflight.hlo import Program
from albef_jax.parallel.mesh import AXES, axis_sizes, batch_shards, check_groups, make_mesh
from albef_jax.preflight.targets import find_target

REMAT = {"model.remat": True, "model.remat_save": ()}
# What lowers memory, the cheapest in time first.
SWITCHES = (
    {"model.remat": True, "model.remat_save": ("qkv", "attention")},
    REMAT,
    {"accumulation": 2}, REMAT | {"accumulation": 2},
    {"accumulation": 4}, REMAT | {"accumulation": 4},
    REMAT | {"mesh.fsdp": 4}, REMAT | {"mesh.fsdp": 8}, REMAT | {"mesh.fsdp": 16},
)


def plan(config, target, hbm=None, examples=0, suggest=False):
    """Plans a config for a target and prints the result.

    Args:
      config: a locked config; its data is not read. target: see `targets.FORMS`.
      hbm: bytes of memory per device, if not the target's. examples: in an epoch; 0: as the
        config states.
      suggest: where the step does not fit, plan it with the first switches that should help.

    Returns:
      The printed values by name (bytes, FLOPs, seconds), of the last config that was planned.

    Raises:
      UserError: a config or target that cannot be used; a batch that the target does not divide.
    """
    if not target.startswith(("gpu", *roofline.GPUS)):
        jax.config.update("jax_platforms", "cpu")  # leave accelerators to those who train
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    check_values(config)
    check_model(config)
    target = find_target(target, config.mesh.slices, config.model.dtype)
    target = target._replace(memory=hbm or target.memory)
    config, epoch = with_steps(config, examples)
    result = measure(config, target, epoch)
    if not result["fits"]:
        lighter = [switch for switch in switches(config, target, result) if switch.fits]
        if suggest and lighter:
            print(f"\nwith {lighter[0].flags}:\n", flush=True)
            result = measure(changed(config, lighter[0].values), target, epoch)
    return result


def with_steps(config, examples):
    """The config with its number of steps where it can be known, and examples in an epoch or 0."""
    config = config.copy_and_resolve_references().unlock()
    epoch = examples or config.data.examples
    per_epoch = epoch // config.batch_size
    config.steps = config.steps or config.epochs * per_epoch
    # Any number compiles to the same work.
    config.optimizer.steps_per_epoch = config.optimizer.steps_per_epoch or max(per_epoch, 1)
    if config.objective.alpha_ramp_steps < 0:
        config.objective.alpha_ramp_steps = max(per_epoch, 1)
    return config.lock(), epoch


def plan_mesh(config, target):
    """The mesh of the config over the target; of shapes only, where there are no devices.

    Raises:
      UserError: devices or the batch do not divide so.
    """
    if target.devices is None:
        sizes = axis_sizes(config.mesh, target.count)
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    else:
        mesh = make_mesh(config.mesh, target.devices)
    check_groups(config.batch_size, config.group_size, config.accumulation, batch_shards(mesh))
    return mesh


def measure(config, target, epoch):
    """Compiles or estimates the step, prints what comes of it, and returns it by name."""
    mesh = plan_mesh(config, target)
    parts = state_bytes(config, mesh)
    print(tables.heading(config, target, mesh, parts), flush=True)
    with ticking("tracing activations"):
        kept = kept_bytes(config, mesh)
    if target.devices is None:
        parts = memory_estimate(parts, kept)
        work, sent = work_estimate(config, mesh, parts)
        result = {"prediction": roofline.predict(
            work, sent, target.peak, target.bandwidth, target.network)}
    else:
        result = compile_step(config, target, mesh, parts)
    result |= {"parts": parts, "kept": kept, "total": sum(parts.values())}
    result["fits"] = result["total"] <= target.memory
    print(tables.memory(result, target))
    if "flops" in result:
        print(tables.work(config, result, mesh))
    if "prediction" in result:
        print(tables.costs(config, target, result, epoch))
    return result


def compile_step(config, target, mesh, parts):
    """Compiles the step; adds to `parts` what the compiler wants, and returns the rest by name.

    Where the compiler finds no room, only its temporaries are known.
    """
    with ticking("compiling"):
        if target.is_tpu:
            compiled = compile_for_tpu(config, target.name)
        else:
            compiled = compile_here(config, mesh)
    if not compiled.text:
        parts["temporaries"] = compiled.temporaries
        return {}
    parts["padding"] = compiled.arguments - sum(parts.values())
    parts |= {"temporaries": compiled.temporaries, "program": compiled.program}
    program = Program(compiled.text)
    work, collectives = list(program.work()), program.collectives()
    return {
        "compile_seconds": compiled.seconds, "collectives": collectives,
        "flops": sum(w.flops * w.times for w in work),
        "bytes": sum(w.moved * w.times for w in work),
        "prediction": roofline.predict(
            [(w.flops, w.moved) for w in work for _ in range(w.times)],
            [c.wire for c in collectives], target.peak, target.bandwidth, target.network)}


def switches(config, target, result):
    """What `SWITCHES` are estimated to do, printed; a list of `tables.Switch`.

    Of a step's memory the state and the traced activations change; the rest is taken to stay.
    """
    rest = result["total"] - result["kept"] - sum(
        state_bytes(config, plan_mesh(config, target)).values())
    found = []
    with ticking("tracing lighter variants"):
        for values in SWITCHES:
            other = changed(config, values)
            if other.to_json() == config.to_json():
                continue
            try:
                mesh = plan_mesh(other, target)
            except UserError:  # the batch does not divide so
                continue
            total = rest + kept_bytes(other, mesh) + sum(state_bytes(other, mesh).values())
            found.append(tables.Switch(values, total, total <= target.memory))
            if found[-1].fits:
                break
    print(tables.switches(found, target))
    return found


def changed(config, values):
    """The config with other values, by dotted key."""
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(values)
    return config.lock()


@contextlib.contextmanager
def ticking(what):
    """Shows on stderr that something is going on, and at last how long it took."""
    begin, done, live = time.perf_counter(), threading.Event(), sys.stderr.isatty()

    def tick():
        while not done.wait(1 if live else 30):
            print(f"{what} ... {time.perf_counter() - begin:.0f} s", end="\r" if live else "\n",
                  file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print(f"{what}: {time.perf_counter() - begin:.1f} s    ", file=sys.stderr, flush=True)
