"""Compiling a step for TPUs that are not here, as far as a plan needs it.

Nine tenths of the TPU compiler's time go into machine code. Memory, work and collectives are
settled before: when the program is optimised, scheduled and every buffer has its place. The
compiler writes that down if asked to (`xla_dump_to`); it runs in a process of its own, which is
ended as soon as it has.
"""

import multiprocessing
import pathlib
import re
import tempfile
import time
from typing import NamedTuple

import jax

from albef_jax.core.build import build
from albef_jax.errors import UserError, first_line
from albef_jax.parallel.mesh import groups_of, make_mesh
from albef_jax.preflight.targets import find_target

_ERROR = "error.txt"  # that the other process left behind
_DONE = "*jit_step*.after_optimizations_after_buffer_assignment.txt"
_NO_ROOM = re.compile(r"HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)


class Compiled(NamedTuple):
    """A step as the compiler sees it; without text and arguments where it found no room."""

    text: str  # of the optimised program
    arguments: int  # bytes per device, with padding; so are temporaries
    temporaries: int
    program: int  # bytes of machine code, 0 where none was made
    seconds: float  # that it took


def lowered_step(parts):
    """The real training step with shapes for arrays, `jax.stages.Lowered`."""
    return parts.step.lower(parts.state, parts.batch_spec, None)


def compile_here(parts) -> Compiled:
    """Compiles to the end, for devices of this machine."""
    lowered, begin = lowered_step(parts), time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return Compiled(compiled.as_text(), memory.argument_size_in_bytes, memory.temp_size_in_bytes,
                    memory.generated_code_size_in_bytes, time.perf_counter() - begin)


def compile_for_tpu(config, target: str) -> Compiled:
    """Compiles for a TPU target until every buffer has its place; a UserError where the compiler
    stopped for another reason than lack of memory."""
    begin, context = time.perf_counter(), multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="albef_plan_", ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name)
        process = context.Process(target=_compile, args=(config.to_json(), target, name),
                                  daemon=True)
        process.start()
        try:
            while process.is_alive() and not any(folder.glob(_DONE)):
                process.join(0.2)
        finally:
            process.kill()
            process.join()
        if not any(folder.glob(_DONE)):
            said = folder / _ERROR
            error = (said.read_text() if said.exists() else
                     "it was killed; there may be too little memory here")
            if wanted := _NO_ROOM.search(error):
                size = int(float(wanted.group(1)) * _UNITS[wanted.group(2)])
                return Compiled("", 0, size, 0, time.perf_counter() - begin)
            raise UserError(f"The compiler for {target} stopped: {first_line(error)}.")
        (program,) = folder.glob("*jit_step*.after_optimizations.txt")
        (buffers,) = folder.glob("*jit_step*.after_optimizations-buffer-assignment.txt")
        arguments, temporaries = buffer_bytes(buffers.read_text())
        return Compiled(program.read_text(), arguments, temporaries, 0, time.perf_counter() - begin)


def buffer_bytes(text: str) -> tuple[int, int]:
    """Bytes of arguments and of everything else in main memory, of a buffer assignment."""
    arguments = others = 0
    for size, rest in _ALLOCATION.findall(text):
        if "parameter" in rest:
            arguments += int(size)
        elif "color" not in rest or "color 0" in rest:  # others are memories on the chip
            others += int(size)
    return arguments, others


def _compile(config_json, target, folder):
    """Runs in a process of its own."""
    from albef_jax.config import from_json

    try:
        config = from_json(config_json)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)  # cannot hold these programs
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)
        devices = find_target(target, config.mesh.slices).devices
        parts = build(config, make_mesh(config.mesh, devices, groups_of(config)))
        lowered_step(parts).compile(
            compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    except Exception as error:  # for the other process to tell
        (pathlib.Path(folder) / _ERROR).write_text(f"{type(error).__name__}: {error}")
