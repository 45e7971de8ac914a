"""What a step needs without compiling it: its state, and what the way back keeps of the way there.

State bytes are exact. Activations are those that JAX keeps for the gradient, read from the traced
loss; what a compiler fuses away, computes twice or needs as scratch is not known here.
"""

import math

import jax
import jax.extend.core
import jax.numpy as jnp

from albef_jax.models import flops
from albef_jax.preflight.bench import random_batch
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import abstract_state
from albef_jax.parallel.mesh import batch_shards, sharded_batch
from albef_jax.tasks import make_task

STATE = ("params", "teacher", "opt_state", "memory")


def make_parts(config):
    """The task and the optimizer of a config whose steps may be unknown."""
    return make_task(config), make_optimizer(
        config.optimizer, make_schedule(config.optimizer, max(config.steps, 1)))


def abstract_batch(config, mesh):
    """The fields of a batch as sharded `jax.ShapeDtypeStruct`s."""
    small = config.copy_and_resolve_references()
    small.batch_size = 2
    return {name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype,
                                       sharding=sharded_batch(mesh))
            for name, x in random_batch(small).items()}


def device_bytes(tree) -> int:
    """Bytes of sharded shapes on one device, without padding."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
               for x in jax.tree.leaves(tree))


def state_bytes(config, mesh) -> dict[str, int]:
    """Bytes per device of each part of the state, and of the batch."""
    state = abstract_state(*make_parts(config), mesh, config.rules)
    parts = {name: device_bytes(getattr(state, name)) for name in STATE}
    return parts | {"batch": device_bytes(abstract_batch(config, mesh))}


def kept_bytes(config, mesh) -> int:
    """Bytes per device of the activations that one micro-step keeps for its gradient.

    Traced for the groups of one device; the same on every mesh with as many groups per device. A
    'model' axis is taken to split them evenly.
    """
    task, optimizer = make_parts(config)
    state = abstract_state(task, optimizer, mesh, config.rules)
    groups = config.batch_size // config.group_size // config.accumulation // batch_shards(mesh)
    group = {name: jax.ShapeDtypeStruct((groups, config.group_size, *x.shape[1:]), x.dtype)
             for name, x in abstract_batch(config, mesh).items()}

    def kept(params, teacher, memory, group):
        def loss(params):
            def one(fields, key):
                return task.loss(params, teacher, memory, fields, key, task.schedule(0))[0]

            return jnp.sum(jax.vmap(one)(group, jax.random.split(jax.random.key(0), groups)))

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    traced = jax.make_jaxpr(kept)(state.params, state.teacher, state.memory, group).jaxpr
    known = {*traced.invars, *traced.constvars}
    arrays = {var for var in traced.outvars
              if not isinstance(var, jax.extend.core.Literal) and var not in known}
    return sum(math.prod(var.aval.shape) * var.aval.dtype.itemsize
               for var in arrays) // mesh.shape["model"]


def memory_estimate(parts: dict[str, int], kept: int) -> dict[str, int]:
    """`state_bytes` with the gradients and the activations (`kept_bytes`)."""
    return parts | {"gradients": parts["params"], "activations": kept}


def work_estimate(config, mesh, parts):
    """FLOPs and bytes of one device as `roofline.predict` takes them, and bytes sent.

    FLOPs are those of flops.py, and the forward pass once more where the config recomputes it;
    memory is touched to update the state, and to write and read the activations.

    Args:
      parts: of `memory_estimate`.
    """
    operations = flops.step_flops(config)["total"] * config.batch_size / mesh.size
    if config.model.remat:
        operations *= 4 / 3
    state = 2 * (parts["params"] + parts["teacher"] + parts["opt_state"]) + parts["gradients"]
    kept = 2 * config.accumulation * parts["activations"]
    devices = batch_shards(mesh)
    sent = 2 * parts["gradients"] * (devices - 1) / devices
    if mesh.shape["fsdp"] > 1:  # gathered on the way there and on the way back
        sent += 2 * parts["params"] * (mesh.shape["fsdp"] - 1)
    return [(operations, 0), (0, state), (0, kept)], [sent]
