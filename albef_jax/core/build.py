"""Everything that a config decides about a training step, made in one place."""

import dataclasses
import functools
from typing import Any

import jax
from jax.extend.core import Literal
import jax.numpy as jnp

from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import TrainState, abstract_state
from albef_jax.core.step import make_train_step
from albef_jax.parallel.mesh import sharded_batch
from albef_jax.tasks import make_task

TRACED = 4  # examples of a group that is traced to see which parameters get gradients


@dataclasses.dataclass
class Parts:
    """What a config is made into for a mesh; each part is made when it is first asked for.

    Attributes:
      config: with everything filled in that data decides. mesh: from `parallel.mesh.make_mesh`.
    """

    config: Any
    mesh: Any

    @functools.cached_property
    def task(self):
        return make_task(self.config)

    @functools.cached_property
    def schedule(self):
        """Learning rate as a function of the number of finished steps."""
        # A plan or a benchmark may not know the number of steps; any compiles to the same work.
        return make_schedule(self.config.optimizer, max(self.config.steps, 1))

    @functools.cached_property
    def optimizer(self):
        params = jax.eval_shape(self.task.init, jax.random.key(0))
        frozen = jax.tree_util.tree_map_with_path(
            lambda path, _: self.task.untrained(tuple(key.key for key in path)), params)
        return make_optimizer(self.config.optimizer, self.schedule,
                              trained(self.task, params, self.example), frozen)

    @functools.cached_property
    def example(self):
        """The arrays of one example: name -> `jax.ShapeDtypeStruct`."""
        fields = self.task.fields(self.config).values()
        return {name: one for field in fields for name, one in field.spec().items()}

    @functools.cached_property
    def batch_spec(self):
        """The arrays of a batch: name -> sharded `jax.ShapeDtypeStruct`."""
        return {name: jax.ShapeDtypeStruct((self.config.batch_size, *one.shape), one.dtype,
                                           sharding=sharded_batch(self.mesh))
                for name, one in self.example.items()}

    @functools.cached_property
    def state(self):
        """The `TrainState` as `jax.ShapeDtypeStruct`s with shardings."""
        return abstract_state(self.task, self.optimizer, self.mesh, self.config.rules)

    @property
    def shardings(self):
        """Where each array of the state lives: a `TrainState` of `NamedSharding`s."""
        return jax.tree.map(lambda x: x.sharding, self.state)

    @functools.cached_property
    def step(self):
        """The jitted training step; see `core.step.make_train_step`."""
        c = self.config
        return make_train_step(
            self.task, self.optimizer, self.mesh, c.rules, self.shardings, seed=c.seed,
            group_size=c.group_size, groups=c.batch_size // c.group_size,
            accumulation=c.accumulation, momentum=c.objective.get("momentum", 1.0))

    def create_state(self):
        """The state of step 0, each array made where it will live."""
        return jax.jit(lambda: TrainState.create(self.task, self.optimizer, self.config.seed),
                       out_shardings=self.shardings)()


def build(config, mesh):
    """The `Parts` of a config: train, evaluate, bench, plan and tests use them and nothing else."""
    return Parts(config, mesh)


def trained(task, params, example):
    """Which parameters the loss sends gradients to: a tree of bool, of shapes.

    Found in the traced gradient of one group: a parameter that the loss does not read, or reads
    where no gradient flows back, has a gradient that depends on no input.
    """
    def gradient(params, *rest):
        return jax.grad(lambda p: task.loss(task.prepare(p), *rest)[0])(params)

    rng = jax.random.key(0)
    group = {name: jax.ShapeDtypeStruct((TRACED, *one.shape), one.dtype)
             for name, one in example.items()}
    traced = jax.make_jaxpr(gradient)(
        params, jax.eval_shape(task.teacher_of, params), jax.eval_shape(task.init_memory, rng),
        group, rng, jax.eval_shape(task.schedule, jnp.zeros((), jnp.int32))).jaxpr
    known = set(traced.invars)
    for equation in traced.eqns:
        if any(var in known for var in equation.invars if not isinstance(var, Literal)):
            known.update(equation.outvars)
    reached = [not isinstance(var, Literal) and var in known for var in traced.outvars]
    return jax.tree.unflatten(jax.tree.structure(params), reached)
