"""TrainState: everything that a run needs to go on, in one pytree; and where it lives."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import optax

from albef_jax.parallel.mesh import placed


class TrainState(flax.struct.PyTreeNode):
    """The state between two steps.

    There is no random state: keys are functions of seed, step and group.
    """

    step: jax.Array  # int32 scalar, the number of finished steps
    params: Any  # online, float32
    teacher: Any  # the EMA of the parts that have a teacher; may be an empty dict
    opt_state: Any
    memory: Any  # what the task carries from step to step (queues, pointer)

    @classmethod
    def create(cls, task, optimizer: optax.GradientTransformation, seed):
        """The state of step 0; call it under jit to make the arrays where they will live."""
        params_key, memory_key = jax.random.split(jax.random.key(seed))
        params = task.init(params_key)
        return cls(
            step=jnp.zeros((), jnp.int32), params=params,
            # A copy: the state is donated, and one buffer cannot be donated twice.
            teacher=jax.tree.map(jnp.copy, task.teacher_of(params)),
            opt_state=optimizer.init(params), memory=task.init_memory(memory_key))


def abstract_state(task, optimizer, mesh, rules):
    """A `TrainState` of `jax.ShapeDtypeStruct`s with shardings; mesh, rules: see `placed`.

    Teacher and optimizer state follow their parameters; the first axis of what a task remembers
    is called 'queue'.
    """
    shapes = jax.eval_shape(lambda: TrainState.create(task, optimizer, 0))
    axes, none = task.axes(), PartitionSpec()
    return placed(shapes, TrainState(
        step=none, params=axes, teacher=task.teacher_of(axes),
        opt_state=optax.tree.map_params(optimizer, lambda _, axis: axis, shapes.opt_state, axes,
                                        transform_non_params=lambda _: none),
        memory=jax.tree.map(lambda x: PartitionSpec(*["queue"] * (x.ndim > 0)), shapes.memory)),
        mesh, rules)
