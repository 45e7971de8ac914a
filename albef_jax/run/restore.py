"""States and parts of them, read back from a work directory onto the devices that are here."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from albef_jax.core.state import TrainState
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh, placed
from albef_jax.run.checkpoint import open_to_read


def mesh_of(config):
    """The mesh of a run, if it fits the devices that are here, else all of them side by side."""
    try:
        return make_mesh(config.get("mesh"))
    except UserError:
        return make_mesh()


def restore_params(workdir, config, task, mesh, step=None):
    """The online parameters of a checkpoint, placed by the rules of the config, and its step.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or of another config.
    """
    params = jax.eval_shape(lambda: task.init(jax.random.key(config.seed)))
    restored, step = restore_parts(workdir, config, task, {"params": params}, mesh, step)
    return restored["params"], step


def restore_state(workdir, config, task, mesh, step=None):
    """As `restore_params`, for a `TrainState` without the optimizer's state.

    Imported weights have none, and nothing but training reads it.
    """
    params = jax.eval_shape(lambda: task.init(jax.random.key(config.seed)))
    shapes = {"step": jax.ShapeDtypeStruct((), jnp.int32), "params": params,
              "teacher": jax.eval_shape(task.teacher_of, params),
              "memory": jax.eval_shape(lambda: task.init_memory(jax.random.key(config.seed)))}
    restored, step = restore_parts(workdir, config, task, shapes, mesh, step)
    return TrainState(**restored, opt_state=()), step


def restore_parts(workdir, config, task, shapes, mesh, step=None):
    """Parts of a checkpoint by name, and its step; what has no axis names is whole everywhere."""
    axes = task.axes()
    names = {"params": axes, "teacher": task.teacher_of(axes)}
    whole = {part: jax.tree.map(lambda _: PartitionSpec(), tree)
             for part, tree in shapes.items() if part not in names}
    shapes = placed(shapes, {part: (names | whole)[part] for part in shapes}, mesh,
                    config.get("rules", ()))
    with open_to_read(workdir, config.checkpoint) as checkpointer:
        return checkpointer.restore(shapes, step, partial=True)
