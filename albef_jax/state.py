"""TrainState: everything that a run needs to go on, in one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """The state between two steps.

    There is no random state: keys are functions of seed, step and group.

    Attributes:
      step: int32 scalar, the number of finished steps.
      params: the online parameters, float32.
      teacher: the EMA of the parts that have a teacher; may be an empty dict.
      opt_state: of the optimizer.
      memory: what the task carries from step to step (queues, pointer).
    """

    step: jax.Array
    params: Any
    teacher: Any
    opt_state: Any
    memory: Any

    @classmethod
    def create(cls, task, optimizer: optax.GradientTransformation, seed):
        """The state of step 0; call it under jit to make the arrays where they will live.

        Args:
          task: a `tasks.base.Task`. optimizer: from `optim.make_optimizer`.
          seed: of parameters and queues.
        """
        params_key, memory_key = jax.random.split(jax.random.key(seed))
        params = task.init(params_key)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy: the state is donated, and one buffer cannot be donated twice.
            teacher=jax.tree.map(jnp.copy, task.teacher_of(params)),
            opt_state=optimizer.init(params),
            memory=task.init_memory(memory_key),
        )
