"""The device mesh and where arrays live on it."""

import functools
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from albef_jax.errors import UserError
from albef_jax.files import cache_folder
from albef_jax.parallel.axes import BATCH_AXES, devices_along, mesh_axes

AXES = (*BATCH_AXES, "model")


def use_compile_cache():
    """Keeps compiled programs in the user's cache folder, unless the user chose another."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("")))


def make_mesh(settings=None, devices=None, groups=0):
    """A mesh with the axes 'data', 'span', 'fsdp' and 'model'.

    Args:
      settings: `config.mesh`: devices along each axis (-1: the rest) and the number of slices;
        None: all on 'data'.
      devices: of all processes, or those given.
      groups: that a micro-step has; with fewer than devices, 'span' takes its share of 'data'. 0:
        any number.

    Raises:
      UserError: the devices do not divide so.
    """
    devices = devices or jax.devices()
    sizes = axis_sizes(settings or {"data": -1, "fsdp": 1, "model": 1}, len(devices), groups)
    slices = settings.slices if settings else 1
    if slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        grid = sliced_grid(sizes, slices, devices)
    # Auto axes: indexing a sharded batch inside a linen module is an error on Explicit ones.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def axis_sizes(settings, count, groups=0):
    """Devices along each of `AXES`, see `make_mesh`; a UserError if they do not make `count`."""
    sizes = [settings[axis] for axis in ("data", "fsdp", "model")]
    known = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh has data, fsdp and model = {sizes}; give numbers of devices, "
                        "and -1 for the rest at most once.")
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(
            f"config.mesh wants data x fsdp x model = {' x '.join(map(str, sizes))} devices, but "
            f"there are {count}; set one of them to -1 and the others to divisors of {count}.")
    data, fsdp, model = sizes
    spans = groups and groups % (data * fsdp) and data % groups == 0
    span = data // groups if spans else 1
    return data // span, span, fsdp, model


def unsplit_axes(tree, axes, mesh, rules):
    """What `rules` would split and the mesh does not divide, a sentence for each such axis.

    Args:
      tree: arrays. axes: logical `PartitionSpec`s for it. mesh, rules: see `placed`.
    """
    split, whole = dict(rules), {}
    for array, names in zip(jax.tree.leaves(tree), jax.tree.leaves(axes), strict=True):
        for name, size in zip(names, array.shape):
            axis = split.get(name)
            if axis and size % mesh.shape[axis]:
                whole[name, size] = axis
    return [f"the axis {name!r} of {size} stays whole on every device: mesh.{axis}="
            f"{mesh.shape[axis]} does not divide it"
            for (name, size), axis in whole.items()]


def groups_of(config):
    """Groups of a micro-step of a config, at least 1."""
    return max(config.batch_size // config.group_size // config.accumulation, 1)


def group_axes(mesh, groups):
    """Mesh axes that so many groups of a micro-step, and the rows of a group, are spread over."""
    return (BATCH_AXES, ()) if groups % batch_shards(mesh) == 0 else (("data",), BATCH_AXES[1:])


def sliced_grid(sizes, slices, devices):
    """A grid of devices whose outermost steps along 'data' go from slice to slice."""
    data, *inside = sizes
    by_slice = {getattr(device, "slice_index", None) for device in devices}
    by_process = {device.process_index for device in devices}
    if data % slices or slices not in (len(by_slice), len(by_process)):
        raise UserError(
            f"config.mesh.slices is {slices}, but the devices are in {len(by_slice)} slice(s) and "
            f"{len(by_process)} process(es), and data is {data}; slices must be one of the first "
            "two and divide the last.")
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inside), (slices, *[1] * len(inside)), devices,
        process_is_granule=len(by_slice) != slices, allow_split_physical_axes=True)


def batch_shards(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return devices_along(mesh, BATCH_AXES)


def replicated(mesh: Mesh):
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded_batch(mesh: Mesh):
    """Sharding of arrays whose first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.lru_cache(maxsize=64)
def local_rows(mesh: Mesh, batch_size: int):
    """The rows of a global batch that this process's devices hold: int array, in order.

    Where 'model' spans processes, several of them hold the same rows.
    """
    indices = sharded_batch(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows, in indices.values()]))


def shard_batch(batch, mesh):
    """Places a dict of numpy arrays, this process's `local_rows`, on the mesh."""
    parts = batch_shards(mesh)
    here = len(local_rows(mesh, parts))
    shapes = {name: (len(array) // here * parts, *array.shape[1:])
              for name, array in batch.items()}
    return jax.make_array_from_process_local_data(sharded_batch(mesh), batch, shapes)


def placed(shapes, axes, mesh, rules):
    """A tree of shapes with shardings, `jax.ShapeDtypeStruct`s.

    Args:
      shapes: a tree of what has a shape and a dtype. axes: logical `PartitionSpec`s for it.
      mesh: from `make_mesh`. rules: pairs of logical axis and mesh axis.
    """
    return jax.tree.map(lambda x, axis: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, mesh_axes(axis, x.shape, mesh, rules))),
        shapes, axes)


def check_groups(config, mesh):
    """Checks that the batch of a config divides into groups, micro-steps and devices of a mesh.

    Raises:
      UserError: with the sizes that would fit.
    """
    batch_size, group_size, steps = config.batch_size, config.group_size, config.accumulation
    if group_size < 2:
        raise UserError(f"group_size is {group_size}; contrasts need at least 2.")
    if batch_size % group_size:
        raise UserError(
            f"batch_size {batch_size} is not a multiple of group_size {group_size}; set "
            f"batch_size to {batch_size // group_size * group_size or group_size} or choose a "
            "group_size that divides it.")
    groups, devices = batch_size // group_size, batch_shards(mesh)
    along, within = (devices_along(mesh, axes) for axes in group_axes(mesh, groups_of(config)))
    if groups % steps or (groups // steps) % along or group_size % within:
        unit = steps * devices
        raise UserError(
            f"batch_size {batch_size} makes {groups} groups of {group_size}, which do not "
            f"divide over {steps} micro-step(s) x {devices} device(s); set batch_size to "
            f"{max(groups // unit, 1) * unit * group_size} or group_size to a divisor of "
            f"{batch_size / unit:g}.")
