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

from albef_jax.core.build import build
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import AXES, axis_sizes, check_groups, groups_of, make_mesh
from albef_jax.files import check_out
from albef_jax.preflight import by_part, tables
from albef_jax.preflight.ahead import compile_for_tpu, compile_here
from albef_jax.preflight.assume import assumed
from albef_jax.preflight.bench import dtype_of
from albef_jax.preflight.estimate import kept_bytes, state_bytes, work_estimate
from albef_jax.preflight.hlo import Program
from albef_jax.preflight.roofline import GPUS, predict
from albef_jax.preflight.targets import find_target
from albef_jax.tasks import task_class


def plan(config, target, hbm=None, examples=0, suggest=False, by_op=False, json=None,
         against=None):
    """Plans a config for a target and prints the result.

    Args:
      config: a locked config; its data is not read. target: see `targets.FORMS`.
      hbm: bytes of memory per device, if not the target's. examples: in an epoch; 0: as the
        config states.
      suggest: where the step does not fit, plan it with the first switches that should help.
      by_op: print what each part of the model costs. json: a file for that, or None.
      against: a file of another plan, which is compared with this one, or None.

    Returns:
      The printed values by name (bytes, FLOPs, seconds), of the last config that was planned.

    Raises:
      UserError: a config, target or file that cannot be used; a batch that the target does not
        divide.
    """
    if json:
        check_out(json, option="--json")
    before = by_part.read_json(against) if against else None
    if not target.startswith(("gpu", *GPUS)):
        jax.config.update("jax_platforms", "cpu")  # leave accelerators to those who train
    config = assumed(config, examples)
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    target = find_target(target, config.mesh.slices, dtype_of(config))
    target = target._replace(memory=hbm or target.memory)
    result = measure(config, target)
    if not result["fits"]:
        lighter = [switch for switch in switches(config, target, result) if switch.fits]
        if suggest and lighter:
            print(f"\nwith {lighter[0].flags}:\n", flush=True)
            result = measure(changed(config, lighter[0].values), target)
    if by_op or json or before:
        show_parts(result.get("parts"), target, by_op, json, before)
    return result


def parts_for(config, target):
    """The `Parts` of a config on a target, with the mesh's shape only where no devices are; a
    UserError where devices or the batch do not divide so."""
    groups = groups_of(config)
    if target.devices is None:
        sizes = axis_sizes(config.mesh, target.count, groups)
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    else:
        mesh = make_mesh(config.mesh, target.devices, groups)
    check_groups(config, mesh)
    return build(config, mesh)


def measure(config, target):
    """Compiles or estimates the step, prints what comes of it, and returns it by name."""
    parts = parts_for(config, target)
    held = state_bytes(parts)
    print(tables.heading(parts, target), flush=True)
    with ticking("tracing activations"):
        kept = kept_bytes(parts)
    if target.devices is None:
        held |= {"gradients": held["params"], "activations": kept}
        result = {}
        if parts.task.flops(parts.config):  # else the work of the task is not known
            result["prediction"] = predict(*work_estimate(parts, held), *target.rates)
    else:
        result = compile_step(parts, target, held)
    result |= {"held": held, "kept": kept, "total": sum(held.values())}
    result["fits"] = result["total"] <= target.memory
    print(tables.memory(result, target))
    if "flops" in result:
        print(tables.work(parts, result))
    if "prediction" in result:
        print(tables.costs(parts, target, result))
    return result


def compile_step(parts, target, held):
    """Compiles the step; adds to `held` what the compiler wants, and returns the rest by name.

    Where the compiler finds no room, only its temporaries are known.
    """
    with ticking("compiling"):
        compiled = (compile_for_tpu(parts.config, target.name) if target.is_tpu
                    else compile_here(parts))
    if not compiled.text:
        held["temporaries"] = compiled.temporaries
        return {}
    held["padding"] = compiled.arguments - sum(held.values())
    held |= {"temporaries": compiled.temporaries, "program": compiled.program}
    program = Program(compiled.text)
    work, collectives = list(program.work()), program.collectives()
    return {
        "compile_seconds": compiled.seconds, "collectives": collectives,
        "flops": sum(w.flops * w.times for w in work),
        "bytes": sum(w.moved * w.times for w in work),
        "parts": by_part.costs(work, collectives, target.rates),
        "prediction": predict([(w.flops, w.moved) for w in work for _ in range(w.times)],
                              [c.wire for c in collectives], *target.rates)}


def show_parts(found, target, by_op, json, before):
    """Prints what each part costs, writes it, and compares it with `before`, as wanted."""
    if found is None:
        raise UserError(f"What each part costs is read from a compiled program, and for "
                        f"{target.name} there is none; give --target a TPU slice or cpu, and a "
                        "config that fits.")
    if by_op:
        print(by_part.table(found))
    if json:
        by_part.write_json(json, target.name, found)
    if before:
        print(by_part.comparison(before, found))


def switches(config, target, result):
    """What the task's `lighter` values are estimated to do, printed; a list of `tables.Switch`.

    Of a step's memory the state and the traced activations change; the rest is taken to stay.
    """
    rest = result["total"] - result["kept"] - sum(state_bytes(parts_for(config, target)).values())
    found = []
    with ticking("tracing lighter variants"):
        for values in task_class(config.task).lighter:
            other = changed(config, values)
            if other.to_json() == config.to_json():
                continue
            try:
                parts = parts_for(other, target)
            except UserError:  # the batch does not divide so
                continue
            total = rest + kept_bytes(parts) + sum(state_bytes(parts).values())
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
