"""Meshes, the rows of a process, and rules that do not fit."""

from types import SimpleNamespace

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.parallel.axes import mesh_axes
from albef_jax.parallel.mesh import (
    AXES,
    axis_sizes,
    check_groups,
    group_axes,
    groups_of,
    local_rows,
    make_mesh,
    shard_batch,
    unsplit_axes,
)


def settings(**axes):
    mesh = default_config().mesh
    mesh.update(axes)
    return mesh


@pytest.mark.parametrize("axes, count, sizes", [
    ({}, 8, (8, 1, 1, 1)), ({"fsdp": 4}, 8, (2, 1, 4, 1)),
    ({"fsdp": -1, "data": 2}, 8, (2, 1, 4, 1)), ({"fsdp": 2, "model": 2}, 8, (2, 1, 2, 2)),
    ({}, 1, (1, 1, 1, 1)),
])
def test_the_rest_of_the_devices(axes, count, sizes):
    assert axis_sizes(settings(**axes), count) == sizes


@pytest.mark.parametrize("axes, count, groups, sizes, along, within", [
    ({}, 8, 8, (8, 1, 1, 1), ("data", "span", "fsdp"), ()),
    ({}, 8, 16, (8, 1, 1, 1), ("data", "span", "fsdp"), ()),
    ({}, 8, 2, (2, 4, 1, 1), ("data",), ("span", "fsdp")),
    ({}, 8, 1, (1, 8, 1, 1), ("data",), ("span", "fsdp")),
    ({"fsdp": 2}, 8, 4, (4, 1, 2, 1), ("data",), ("span", "fsdp")),
    ({"fsdp": 2}, 8, 2, (2, 2, 2, 1), ("data",), ("span", "fsdp")),
])
def test_fewer_groups_than_devices_span_them(axes, count, groups, sizes, along, within):
    assert axis_sizes(settings(**axes), count, groups) == sizes
    mesh = AbstractMesh(sizes, AXES)
    assert group_axes(mesh, groups) == (along, within)


def groups_check(batch_size, group_size, accumulation, devices):
    """Checks such a batch on a mesh of so many devices."""
    config = SimpleNamespace(batch_size=batch_size, group_size=group_size,
                             accumulation=accumulation)
    sizes = axis_sizes(settings(), devices, groups_of(config))
    check_groups(config, AbstractMesh(sizes, AXES))


@pytest.mark.parametrize("sizes", [
    (16, 8, 1, 1), (16, 8, 1, 2), (64, 4, 2, 8), (512, 64, 1, 8), (512, 64, 4, 2),
    (16, 8, 1, 4), (16, 16, 1, 8), (32, 8, 2, 8)])
def test_batches_that_divide(sizes):
    groups_check(*sizes)


@pytest.mark.parametrize("sizes, words", [
    ((16, 1, 1, 1), ["group_size is 1", "at least 2"]),
    ((20, 8, 1, 1), ["batch_size 20 is not a multiple of group_size 8", "set batch_size to 16"]),
    ((4, 8, 1, 1), ["set batch_size to 8"]),
    ((500, 64, 1, 1), ["set batch_size to 448"]),
    ((48, 8, 1, 8), ["6 groups of 8", "8 device(s)", "set batch_size to 64 or group_size"]),
    ((48, 8, 4, 1), ["4 micro-step(s)", "set batch_size to 32"]),
    ((256, 8, 2, 5), ["set batch_size to 240"]),
    ((12, 6, 1, 8), ["2 groups of 6", "8 device(s)"]),  # 6 rows of a group on 4 devices
])
def test_batches_that_do_not_divide(sizes, words):
    with pytest.raises(UserError) as error:
        groups_check(*sizes)
    assert all(word in str(error.value) for word in words)
    assert str(error.value).count(". ") == 0  # one sentence


@pytest.mark.parametrize("axes, words", [
    ({"fsdp": 3}, ["2 x 3 x 1", "there are 8"]), ({"data": 4}, ["4 x 1 x 1", "there are 8"]),
    ({"fsdp": -1}, ["at most once"]), ({"model": 0}, ["numbers of devices"]),
])
def test_meshes_that_do_not_fit(axes, words):
    with pytest.raises(UserError) as error:
        axis_sizes(settings(**axes), 8)
    assert all(word in str(error.value) for word in words)


def test_slices_that_are_not_there():
    with pytest.raises(UserError, match="slices is 2, but the devices are in 1 slice"):
        make_mesh(settings(slices=2), jax.devices()[:1])


def test_an_axis_that_does_not_divide_stays_whole():
    grid = np.array([jax.devices()[0]] * 4).reshape(1, 1, 2, 2)
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    rules = default_config().rules
    assert mesh_axes(("vocab", "embed"), (6, 4), mesh, rules) == PartitionSpec("model", "fsdp")
    assert mesh_axes(("vocab", "embed"), (7, 4), mesh, rules) == PartitionSpec(None, "fsdp")
    assert mesh_axes((None, "unknown"), (4, 4), mesh, rules) == PartitionSpec(None, None)
    arrays, names = [np.zeros((7, 4)), np.zeros((6, 4))], [PartitionSpec("vocab", "embed")] * 2
    assert unsplit_axes(arrays, names, mesh, rules) == [
        "the axis 'vocab' of 7 stays whole on every device: mesh.model=2 does not divide it"]


def test_rows_of_the_only_process():
    mesh = make_mesh()
    np.testing.assert_array_equal(local_rows(mesh, 4), range(4))
    batch = {"image": np.arange(8).reshape(4, 2)}
    np.testing.assert_array_equal(shard_batch(batch, mesh)["image"], batch["image"])
