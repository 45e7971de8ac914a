"""Process start-up, the device mesh and where arrays live on it."""

import os
import pathlib

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from albef_jax.errors import UserError


def use_compile_cache():
    """Keeps compiled programs in the user's cache folder, unless the user chose another."""
    if not jax.config.jax_compilation_cache_dir:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "albef_jax"))


def make_mesh(devices=None):
    """A mesh with one axis, 'data', over all devices of all processes (or those given)."""
    devices = devices or jax.devices()
    # Auto axes: indexing a sharded batch inside a linen module is an error on Explicit ones.
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh):
    """Sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def sharded_batch(mesh: Mesh):
    """Sharding of arrays whose first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch, mesh):
    """Places a dict of numpy arrays, this process's rows, on the mesh: axis 0 over 'data'."""
    sharding = sharded_batch(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()}


def check_groups(batch_size, group_size, accumulation, devices):
    """Checks that a batch divides into groups, micro-steps and devices.

    Raises:
      UserError: with the sizes that would fit.
    """
    if group_size < 2:
        raise UserError(f"group_size is {group_size}; hard negatives need at least 2.")
    if batch_size < 1 or accumulation < 1:
        raise UserError(f"batch_size is {batch_size} and accumulation {accumulation}; both must "
                        "be at least 1.")
    if batch_size % group_size:
        raise UserError(
            f"batch_size {batch_size} is not a multiple of group_size {group_size}; set "
            f"batch_size to {batch_size // group_size * group_size or group_size} or choose a "
            "group_size that divides it.")
    groups = batch_size // group_size
    if groups % accumulation or (groups // accumulation) % devices:
        unit = accumulation * devices
        raise UserError(
            f"batch_size {batch_size} makes {groups} groups of {group_size}, which do not "
            f"divide over {accumulation} micro-step(s) x {devices} device(s); set batch_size to "
            f"{max(groups // unit, 1) * unit * group_size} or group_size to a divisor of "
            f"{batch_size / unit:g}.")
