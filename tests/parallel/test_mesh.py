"""Meshes, the rows of a process, and rules that do not fit."""

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.parallel.axes import mesh_axes
from albef_jax.parallel.mesh import AXES, axis_sizes, local_rows, make_mesh, shard_batch


def settings(**axes):
    mesh = default_config().mesh
    mesh.update(axes)
    return mesh


@pytest.mark.parametrize("axes, count, sizes", [
    ({}, 8, (8, 1, 1)), ({"fsdp": 4}, 8, (2, 4, 1)), ({"fsdp": -1, "data": 2}, 8, (2, 4, 1)),
    ({"fsdp": 2, "model": 2}, 8, (2, 2, 2)), ({}, 1, (1, 1, 1)),
])
def test_the_rest_of_the_devices(axes, count, sizes):
    assert axis_sizes(settings(**axes), count) == sizes


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
    grid = np.array([jax.devices()[0]] * 4).reshape(1, 2, 2)
    mesh = Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)
    rules = default_config().rules
    assert mesh_axes(("vocab", "embed"), (6, 4), mesh, rules) == PartitionSpec("model", "fsdp")
    assert mesh_axes(("vocab", "embed"), (7, 4), mesh, rules) == PartitionSpec(None, "fsdp")
    assert mesh_axes((None, "unknown"), (4, 4), mesh, rules) == PartitionSpec(None, None)


def test_rows_of_the_only_process():
    mesh = make_mesh()
    np.testing.assert_array_equal(local_rows(mesh, 4), range(4))
    batch = {"image": np.arange(8).reshape(4, 2)}
    np.testing.assert_array_equal(shard_batch(batch, mesh)["image"], batch["image"])
