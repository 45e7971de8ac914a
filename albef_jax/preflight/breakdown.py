"""Where the time of a compiled step goes, measured: the profiler's events by part of the model."""

import pathlib
import tempfile

import jax

from albef_jax.preflight.by_part import PASSES, part_of, rows_of
from albef_jax.preflight.hlo import Program
from albef_jax.run.tables import aligned

HIDDEN = ("the profiler saw no operation; on a GPU a CUDA graph hides its own, so set "
          "XLA_FLAGS=--xla_gpu_enable_command_buffer= (and nothing after the =)")


def parts_of_operations(text):
    """Name of every instruction that runs -> its part and pass, of a compiled program's text."""
    return {leaf.name: part_of(leaf.attribute(r'op_name="([^"]*)"') or "")
            for leaf, _ in Program(text).leaves()}


def measured(compiled, state, batch, steps):
    """Seconds of a step by part and pass, as `jax.profiler` records them on this machine.

    Operations that run side by side count each, so that the sum can exceed the step's time.

    Args:
      compiled: the step; `state`, which it is given and may write over, and `batch` are its
        arguments. steps: how many are recorded.
    """
    parts, seconds = parts_of_operations(compiled.as_text()), {}
    with tempfile.TemporaryDirectory(prefix="albef_trace_", ignore_cleanup_errors=True) as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, _ = compiled(state, batch, None)
            jax.block_until_ready(state)
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        for name, duration in events(trace):
            if name in parts:
                seconds[parts[name]] = seconds.get(parts[name], 0.0) + duration / steps
    return seconds


def events(trace):
    """Yields the operation and the seconds of each event of a trace that belongs to one."""
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                # On CPUs the end of an operation is an event of its own.
                if name is not None and event.duration_ns and not event.name.startswith("end: "):
                    yield str(name), event.duration_ns / 1e9


def table(seconds) -> str:
    """Milliseconds by part and pass, that of the most first."""
    sums = {}
    for (part, _), value in seconds.items():
        sums[part] = sums.get(part, 0.0) + value
    sums = dict(sorted(sums.items(), key=lambda item: -item[1]))
    total = sum(sums.values())
    rows = [("ms of a step", *PASSES, "all", "% of time")]
    for name, parts in rows_of(sums).items():
        passes = [sum(seconds.get((part, which), 0.0) for part in parts) for which in PASSES]
        rows.append((name, *(f"{1e3 * value:.2f}" for value in (*passes, sum(passes))),
                     f"{100 * sum(passes) / total:.1f}" if total else "0.0"))
    return "\nby part, measured\n" + aligned(rows, indent=2)
