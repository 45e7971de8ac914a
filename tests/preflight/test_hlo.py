"""Reading compiled programs: counts that are known by hand, on eight simulated devices."""

import os
import pathlib
import subprocess
import sys

import pytest

from albef_jax.preflight.hlo import Program

PROGRAMS = '''
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

folder = pathlib.Path(sys.argv[1])
mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def write(name, function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    (folder / name).write_text(text)


def on_devices(body, spec, out=P()):
    return jax.shard_map(body, mesh=mesh, in_specs=(spec,), out_specs=out, check_vma=False)


def loop(x, w_3dd):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_3dd)[0]


write("loop", loop, array(16, 32), array(3, 32, 32))
write("batched", lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), array(2, 7, 4, 8),
      array(2, 9, 4, 8))
write("add", lambda x: x + 1, array(64, 1024))
rows = P("data")
write("all-reduce", on_devices(lambda x: jax.lax.psum(x, "data"), rows), array(16, 32))
write("all-gather", on_devices(lambda x: jax.lax.all_gather(x, "data"), rows), array(16, 32))
write("reduce-scatter", on_devices(
    lambda x: jax.lax.psum_scatter(x, "model", tiled=True), rows, rows), array(16, 32))
write("all-to-all", on_devices(
    lambda x: jax.lax.all_to_all(x, ("data", "model"), 1, 0, tiled=True), P(("data", "model")),
    P(("data", "model"))), array(8, 32))
write("collective-permute", on_devices(
    lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), rows, rows), array(16, 32))
write("in_loop", on_devices(
    lambda x: jax.lax.scan(lambda c, _: (jax.lax.pmean(c * c, "data"), None), x, None, 5)[0],
    rows, rows), array(16, 32))
'''


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """name -> `Program`; every program is compiled by XLA for 4 x 2 CPU devices."""
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run([sys.executable, "-c", PROGRAMS, str(folder)], check=True, env={
        **os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return {path.name: Program(path.read_text()) for path in pathlib.Path(folder).iterdir()}


def flops(program):
    return sum(work.flops * work.times for work in program.work())


def test_loops_count_in_full(programs):
    assert flops(programs["loop"]) == 3 * 2 * 16 * 32 * 32
    in_body = [work.times for work in programs["loop"].work() if work.flops]
    assert in_body == [3]


def test_loops_read_a_slice_of_what_is_stacked(programs):
    moved = sum(work.moved * work.times for work in programs["loop"].work())
    weights, states = 4 * 3 * 32 * 32, 4 * 16 * 32
    # Each weight is sliced (read and written) and read; states are read and written 14 times in
    # all. Reading the whole stack in every round would be twice as much.
    assert moved == pytest.approx(3 * weights + 14 * states, rel=0.1)


def test_batched_products(programs):
    assert flops(programs["batched"]) == 2 * (2 * 4) * 7 * 9 * 8


def test_elementwise_work_moves_its_arrays(programs):
    (work,) = programs["add"].work()
    assert (work.flops, work.moved, work.times) == (0, 2 * 4 * 64 * 1024, 1)


ROW = 4 * 16 * 32 // 4  # bytes of a quarter of the array


@pytest.mark.parametrize("kind, payload, group, wire", [
    ("all-reduce", ROW, 4, 2 * ROW * 3 / 4),
    ("all-gather", 4 * ROW, 4, 3 * ROW),
    ("reduce-scatter", ROW, 2, ROW / 2),
    ("all-to-all", 4 * 32, 8, 4 * 32 * 7 / 8),
    ("collective-permute", ROW, 2, ROW),
])
def test_collectives(programs, kind, payload, group, wire):
    (found,) = programs[kind].collectives()
    assert (found.kind, found.payload, found.times) == (kind, payload, 1)
    assert found.wire == wire and (found.group == group or kind == "collective-permute")


def test_collectives_in_loops(programs):
    (found,) = programs["in_loop"].collectives()
    assert (found.kind, found.times, found.payload) == ("all-reduce", 5, ROW)
    assert found.wire == 5 * 2 * ROW * 3 / 4


def test_replica_groups_are_read_in_every_notation():
    text = """HloModule m

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %a = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %b = f32[8]{0} all-reduce(%a), channel_id=2, replica_groups=[4,2]<=[8]
  %c = f32[8]{0} all-reduce(%b), channel_id=3, replica_groups=mesh['x'=4,'y'=2] {'x','y'}
  %d = f32[8]{0} all-reduce(%c), replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}
  ROOT %e = f32[8]{0} copy(%d)
}
"""
    assert [found.group for found in Program(text).collectives()] == [4, 2, 8, 4]


def test_reduce_scatter_of_a_tpu_is_counted_once():
    """As the TPU compiler writes it, overlapped with a loop."""
    text = """HloModule m

%all-reduce-scatter.1 (i: f32[8]) -> f32[2] {
  %i = f32[8]{0} parameter(0)
  %r = f32[8]{0} all-reduce(%i), channel_id=7, replica_groups=[1,4]<=[4]
  %z = s32[] constant(0)
  ROOT %s = f32[2]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={2}
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %x = f32[8]{0} get-tuple-element(%c), index=1
  %f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[8]{0}) tuple(%n, %x)
}

%condition (d: (s32[], f32[8])) -> pred[] {
  %d = (s32[], f32[8]{0}) parameter(0)
  %m = s32[] get-tuple-element(%d), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%m, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %one = s32[] constant(1)
  %start = (s32[], f32[8]{0}) tuple(%one, %p)
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  ROOT %last = f32[2]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    program = Program(text)
    (found,) = program.collectives()
    assert (found.kind, found.times, found.group, found.payload) == ("reduce-scatter", 1, 4, 32)
    assert max(times for _, times in program.leaves()) == 11  # from 1 to below 12


def test_kernels_count_with_what_they_say_and_what_they_touch():
    """As a TPU's program has them; an operand that is given twice is read once."""
    text = """HloModule m

ENTRY %main (p: bf16[4,8,96], g: bf16[4,8,32]) -> bf16[4,8,96] {
  %p = bf16[4,8,96]{2,1,0} parameter(0)
  %g = bf16[4,8,32]{2,1,0} parameter(1)
  %other = bf16[4,8,96]{2,1,0} custom-call(%p), custom_call_target="Sharding"
  ROOT %k = bf16[4,8,96]{2,1,0} custom-call(%p, %p, %p, %g), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":12345,"transcendentals":8,"bytes_accessed":9}}}
}
"""
    (work,) = Program(text).work()
    assert work.flops == 12345 and work.moved == 2 * (96 + 32 + 96) * 32
