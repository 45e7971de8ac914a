"""The tables of `albef plan`."""

from typing import NamedTuple

import jax

from albef_jax.parallel.axes import devices_along
from albef_jax.parallel.mesh import group_axes, groups_of
from albef_jax.preflight.bench import dtype_of
from albef_jax.preflight.roofline import GIB
from albef_jax.run.tables import aligned

MIB, MB = 2**20, 1e6
PARTS = {  # name of a part of the memory -> as people read it
    "params": "parameters", "teacher": "teacher", "opt_state": "optimizer", "memory": "queues",
    "batch": "batch", "padding": "padding of these", "gradients": "gradients",
    "activations": "activations", "temporaries": "temporaries", "program": "program"}


class Switch(NamedTuple):
    """Config values by dotted key, the bytes per device that they should lead to, and whether
    these fit."""

    values: dict
    total: float
    fits: bool

    @property
    def flags(self) -> str:
        """As typed on the command line."""
        return " ".join(f'--config.{key}="{value}"' if isinstance(value, tuple) else
                        f"--config.{key}={value}" for key, value in self.values.items())


def scaled(value: float) -> str:
    """A large number with a unit prefix, such as '1.50 T'."""
    prefixes = {12: "T", 9: "G", 6: "M", 3: "k"}
    power = next((power for power in prefixes if value >= 10**power), 0)
    return f"{value / 10**power:.2f} {prefixes.get(power, '')}"


def heading(parts, target) -> str:
    """What is planned; of the model its size, and the switches that it has."""
    config, mesh = parts.config, parts.mesh
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()
                     if axis != "span" or size > 1)
    each = f", each on {shared} devices" if (shared := devices_of_a_group(parts)) > 1 else ""
    count = sum(x.size for x in jax.tree.leaves(parts.state.params))
    switches = [f"{name} {config.model[name]}" for name in ("scan", "remat")
                if name in config.model]
    saved = config.model.get("remat") and config.model.get("remat_save")
    kept = f" but {', '.join(saved)}" if saved else ""
    return aligned([
        ("target", f"{target.name}: {target.count} x {target.kind} ({axes})"),
        ("batch", f"{config.batch_size} in groups of {config.group_size}{each}, "
                  f"{config.accumulation} micro-step(s)"),
        ("model", ", ".join([f"{count / 1e6:.1f}M parameters", dtype_of(config), *switches])
                  + kept)])


def devices_of_a_group(parts) -> int:
    """How many devices share the rows of a group."""
    _, within = group_axes(parts.mesh, groups_of(parts.config))
    return devices_along(parts.mesh, within)


def model_flops(parts) -> float:
    """FLOPs of a step on all devices, as the task states them; 0 where it does not."""
    return sum(parts.task.flops(parts.config).values()) * parts.config.batch_size


def memory(result, target) -> str:
    """Bytes per device by part, and whether they fit."""
    held, estimated = result["held"], target.devices is None
    unit, name = (GIB, "GiB") if result["total"] > GIB else (MIB, "MiB")
    rows = [(PARTS[part], f"{size / unit:8.2f}") for part, size in held.items()
            if size >= unit / 200]
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    rows.append(("total", f"{result['total'] / unit:8.2f}   of {target.memory / unit:.2f}: "
                          f"{verdict}"))
    lines = [f"\nmemory per device, {name}" + (
        f" (an estimate: there is no {target.kind} here; what the compiler needs besides is not "
        "in it)" if estimated else ""), aligned(rows, indent=2)]
    if not estimated:
        lines.append(f"  Of the temporaries about {result['kept'] / unit:.2f} are activations "
                     "kept for the gradient (traced; an estimate).")
    if not estimated and "flops" not in result:
        lines.append("  The compiler found no room and stopped: work and time are not known.")
    elif target.is_tpu:
        lines.append("  The machine code, which was not made, takes some 0.1 to 0.3 GiB more.")
    return "\n".join(lines)


def switches(found, target) -> str:
    """What would make it fit."""
    if not found:
        return "\nNo switch is left to try: use more chips, or a smaller group or model."
    unit, name = (GIB, "GiB") if target.memory > GIB else (MIB, "MiB")
    rows = [(switch.flags, f"{switch.total / unit:8.2f} {name}, "
             f"{'fits' if switch.fits else 'does not fit'}") for switch in found]
    advice = "" if found[-1].fits else "\n  None fits: use more chips, or a smaller group or model."
    return ("\nlighter variants, estimated from traced activations\n" + aligned(rows, indent=2)
            + advice)


def work(parts, result) -> str:
    """FLOPs, bytes and collectives of the compiled program."""
    rows = [
        ("FLOPs of the program", f"{scaled(result['flops'])} in matrix products, loops "
                                 "counted in full"),
        ("bytes to and from memory", scaled(result["bytes"]) + "B"),
        ("compiled in", f"{result['compile_seconds']:.0f} s")]
    if model := model_flops(parts) / parts.mesh.size:
        rows.insert(0, ("FLOPs of the model",
                        f"{scaled(model)} (as the public code computes; for MFU)"))
    return ("\nwork per device and step\n" + aligned(rows, indent=2) + "\n"
            + collectives(result["collectives"]))


def collectives(found) -> str:
    """Collectives of a step by kind: how often, bytes per device, and the largest of each kind."""
    if not found:
        return "\nno collectives"
    kinds = {}
    for collective in found:
        kinds.setdefault(collective.kind, []).append(collective)
    rows = [("kind", "times", "MB", "MB sent", "largest")]
    for kind, group in sorted(kinds.items(), key=lambda item: -sum(c.wire for c in item[1])):
        largest = max(group, key=lambda c: c.times * c.payload)
        rows.append((kind, sum(c.times for c in group),
                     f"{sum(c.times * c.payload for c in group) / MB:.1f}",
                     f"{sum(c.wire for c in group) / MB:.1f}",
                     f"{largest.times} x {largest.payload / MB:.1f} MB over {largest.group}: "
                     + "/".join(largest.source.split("/")[-3:])))
    return "\ncollectives per device and step\n" + aligned(rows, indent=2)


def costs(parts, target, result) -> str:
    """Seconds of a step, and what the whole config takes."""
    config, p, epoch = parts.config, result["prediction"], parts.config.data.examples
    mfu = model_flops(parts) / (p.expected * target.count * target.peak)
    rows = [
        ("at the peaks", f"{p.bound:.3f} s ({p.compute:.3f} products, {p.memory:.3f} memory, "
                         f"{p.network:.3f} network)"),
        ("expected", f"{p.expected:.3f} s at {p.efficiency:.0%} of the peaks (an assumption, see "
                     f"roofline.py)" + (f": MFU {mfu:.0%}" if mfu else "")),
        ("samples/s", f"{config.batch_size / p.expected:.0f}")]
    if config.mesh.slices > 1:
        rows.insert(2, ("not counted", "the network between slices"))
    if target.devices is None and devices_of_a_group(parts) > 1:
        rows.insert(2, ("not counted", "what devices tell each other about the group they share"))
    if config.steps:
        days = config.steps * p.expected / 86400
        by_epochs = epoch and config.steps == config.epochs * (epoch // config.batch_size)
        source = f"{config.epochs} epochs of {epoch} examples" if by_epochs else "config.steps"
        rows += [("whole config", f"{config.steps} steps ({source})"),
                 ("days", f"{days:.2f}"), ("device-hours", f"{days * 24 * target.count:.0f}")]
    else:
        rows.append(("whole config", "unknown: give --examples N, the examples in an epoch"))
    return "\ntime (roofline)\n" + aligned(rows, indent=2)
