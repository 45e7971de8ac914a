"""Logical axis names: what the axes of parameters and activations mean, and where they live.

Modules name the axes of their parameters ('embed', 'mlp', 'heads', 'vocab'; see `named`) and of
some activations. The rules of a config map names to mesh axes. While a step that runs on such a
mesh is traced, `placed_on` makes them known to the modules; without it, and where parameters are
not sharded, every function here returns its argument.
"""

import contextlib
import contextvars
import functools
import math

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

# Mesh axes that the rows of a batch are spread over. `span` is a part of `data`: the devices that
# share a group, where there are fewer groups than devices.
BATCH_AXES = ("data", "span", "fsdp")

ROWS = "rows"  # logical axis: of an activation, the rows of the own group
_LAYOUT = contextvars.ContextVar("layout", default=None)
_DEVICES = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def placed_on(mesh, rules, rows=()):
    """Inside, arrays are constrained to `mesh` by `rules`, pairs of logical and mesh axis.

    `rows`: mesh axes that the rows of a group are spread over.
    """
    sharded = any(mesh.shape[axis] > 1 for axis in mesh.axis_names if axis != "data")
    token = _LAYOUT.set((mesh, (*rules, (ROWS, rows or None))) if sharded else None)
    devices = _DEVICES.set((mesh, rows or None))
    try:
        yield
    finally:
        _LAYOUT.reset(token)
        _DEVICES.reset(devices)


def platform():
    """Of the devices that the step is traced for: 'tpu', 'gpu' or 'cpu'.

    None where it is not known or several devices share an array in a way that is not.
    """
    if _DEVICES.get() is not None:
        mesh, _ = _DEVICES.get()
        known = not mesh.empty and not isinstance(mesh, AbstractMesh)  # of plans for GPUs
        return mesh.devices.flat[0].platform if known else None
    return jax.default_backend() if jax.device_count() == 1 else None


def over_rows(function, *arrays):
    """`function(*arrays)` on every device for its own rows, `[rows, ...] -> [rows, ...]`.

    For kernels, which the compiler cannot divide.
    """
    if _DEVICES.get() is None:
        return function(*arrays)
    mesh, rows = _DEVICES.get()
    spec = PartitionSpec(rows)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec,
                         check_vma=False)(*arrays)


def named(init, *names):
    """An initialiser whose parameter has named axes (None: an axis that stays whole)."""
    return nn.with_logical_partitioning(init, names)


def axis_names(boxed):
    """The tree of logical `PartitionSpec`s of what `Module.init` returned."""
    return nn.get_partition_spec(boxed)


def mesh_axes(names, shape, mesh, rules):
    """The `PartitionSpec` of an array; an axis that the devices do not divide stays whole.

    Args:
      names: logical axis names, at most one for each axis of the array. shape: of the array.
      mesh: the devices. rules: pairs of logical axis and mesh axis.
    """
    axes = nn.logical_to_mesh_axes(tuple(names), tuple(rules))
    return PartitionSpec(*(axis if axis and size % devices_along(mesh, axis) == 0 else None
                           for axis, size in zip(axes, shape)))


def devices_along(mesh, axes):
    """The number of devices along one or several mesh axes."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def constrain(x, *names):
    """An activation of the own group, placed by the names of its axes."""
    if _LAYOUT.get() is None:
        return x
    mesh, rules = _LAYOUT.get()
    return jax.lax.with_sharding_constraint(
        x, NamedSharding(mesh, mesh_axes(names, x.shape, mesh, rules)))


def whole(x):
    """States of the own group, `[..., rows, length, width]`: whole but for their rows."""
    return constrain(x, *[None] * (x.ndim - 3), ROWS, None, None)


def gathered(parameter, *names):
    """A parameter as its product needs it: gathered from the devices that share the batch.

    The compiler would else be free to move activations instead, which are larger. Its gradient
    goes back to where the parameter lives.
    """
    if _LAYOUT.get() is None:
        return parameter
    mesh, rules = _LAYOUT.get()
    stays = {name for name, axis in rules if axis not in BATCH_AXES}
    used = [name if name in stays else None for name in names]
    there, here = (NamedSharding(mesh, mesh_axes(axes, parameter.shape, mesh, rules))
                   for axes in (names, used))
    return _moved(parameter, there, here)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(x, there, here):
    return jax.lax.with_sharding_constraint(x, here)


_moved.defvjp(lambda x, there, here: (_moved(x, there, here), None),
              lambda there, here, _, grad: (jax.lax.with_sharding_constraint(grad, there),))


def is_spread():
    """Whether several devices share a group, or the parameters."""
    return _LAYOUT.get() is not None


def is_split(name):
    """Whether activations with this axis are spread over several devices of a group."""
    if _LAYOUT.get() is None:
        return False
    mesh, rules = _LAYOUT.get()
    axis = dict(rules).get(name)
    return axis is not None and axis not in BATCH_AXES and mesh.shape[axis] > 1
