"""What a step needs without compiling it: its state, and what the way back keeps of the way there.

State bytes are exact. Activations are those that JAX keeps for the gradient, read from the traced
loss; what a compiler fuses away, computes twice or needs as scratch is not known here.
"""

import math

import jax
import jax.extend.core
import jax.numpy as jnp

from albef_jax.parallel.axes import devices_along
from albef_jax.parallel.mesh import batch_shards, group_axes, groups_of

STATE = ("params", "teacher", "opt_state", "memory")


def device_bytes(tree) -> int:
    """Bytes of sharded shapes on one device, without padding."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))


def state_bytes(parts) -> dict[str, int]:
    """Bytes per device of each part of the state, and of the batch, of `core.build.build`."""
    held = {name: device_bytes(getattr(parts.state, name)) for name in STATE}
    return held | {"batch": device_bytes(parts.batch_spec)}


def kept_bytes(parts) -> int:
    """Bytes per device of the activations that one micro-step keeps for its gradient.

    Traced for the groups of one device, or for those that several share; the same on every mesh
    with as many groups per device. Axes that split the inside of a group are taken to split
    activations evenly.
    """
    config, mesh, task = parts.config, parts.mesh, parts.task
    along, within = group_axes(mesh, groups_of(config))
    groups = groups_of(config) // devices_along(mesh, along)
    group = {name: jax.ShapeDtypeStruct((groups, config.group_size, *x.shape), x.dtype)
             for name, x in parts.example.items()}

    def kept(params, teacher, memory, group):
        def loss(params):
            def one(fields, key):
                return task.loss(params, teacher, memory, fields, key, task.schedule(0))[0]

            return jnp.sum(jax.vmap(one)(group, jax.random.split(jax.random.key(0), groups)))

        return jax.tree.leaves(jax.vjp(loss, task.prepare(params))[1])

    state = parts.state
    traced = jax.make_jaxpr(kept)(state.params, state.teacher, state.memory, group).jaxpr
    known = {*traced.invars, *traced.constvars}
    arrays = {var for var in traced.outvars
              if not isinstance(var, jax.extend.core.Literal) and var not in known}
    return (sum(math.prod(var.aval.shape) * var.aval.dtype.itemsize for var in arrays)
            // devices_along(mesh, (*within, "model")))


def work_estimate(parts, held):
    """FLOPs and bytes of one device as `roofline.predict` takes them, and bytes sent.

    FLOPs are those that the task states, and the forward pass once more where the config
    recomputes it; memory is touched to update the state, and to write and read the activations.
    What devices tell each other about a group that they share is not in it. `held`: bytes by part,
    see `state_bytes`; also of gradients and activations.
    """
    config, mesh = parts.config, parts.mesh
    operations = sum(parts.task.flops(config).values()) * config.batch_size / mesh.size
    if config.model.get("remat"):
        operations *= 4 / 3
    state = 2 * (held["params"] + held["teacher"] + held["opt_state"]) + held["gradients"]
    kept = 2 * config.accumulation * held["activations"]
    devices = batch_shards(mesh)
    sent = 2 * held["gradients"] * (devices - 1) / devices
    if mesh.shape["fsdp"] > 1:  # gathered on the way there and on the way back
        sent += 2 * held["params"] * (mesh.shape["fsdp"] - 1)
    return [(operations, 0), (0, state), (0, kept)], [sent]
