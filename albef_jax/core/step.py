"""The training step: EMA, gradient over groups, accumulation, memory, update.

The batch is seen as `[groups, group_size, ...]` with the group axis sharded over the devices; with
fewer groups than devices the second axis is sharded too. A task's loss is written for one group and
mapped over the first axis, so what a pair is compared with is a value of the config and not the
number of devices.
"""

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jax.numpy as jnp
import optax

from albef_jax.core.state import TrainState
from albef_jax.parallel.axes import devices_along, placed_on
from albef_jax.parallel.mesh import group_axes, replicated, sharded_batch


def split_groups(tree, group_size):
    """`[batch, ...]` leaves to `[groups, group_size, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, group_size, *x.shape[1:]), tree)


def micro_steps(tree, accumulation, devices):
    """`[groups, ...]` leaves to `[accumulation, groups / accumulation, ...]`.

    Each micro-step takes an equal run of groups from every device: taking contiguous groups
    would move activations between devices.
    """
    def split(x):
        x = x.reshape(devices, accumulation, -1, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(accumulation, -1, *x.shape[3:])

    return jax.tree.map(split, tree)


def join_micro_steps(tree, devices):
    """Undoes `micro_steps`: back to `[groups, ...]` in global order."""
    def join(x):
        x = x.reshape(x.shape[0], devices, -1, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(-1, *x.shape[3:])

    return jax.tree.map(join, tree)


def make_train_step(task, optimizer, mesh, rules, shardings, *, seed, group_size, groups,
                    accumulation, momentum):
    """Compiles nothing yet: returns the jitted `step(state, batch, draws)`.

    Args:
      shardings: where the state lives. seed: of all randomness inside the step.
      group_size: examples that see each other. groups: of a batch.
      accumulation: micro-steps per step; exact, the queues are those of the step's start.
      momentum: of the teacher's EMA.

    Returns:
      A function of the state (donated), a sharded batch `[batch, ...]` and draws (None, or
      recorded ones with a leading group axis) to the next state and a dict of scalar metrics.
    """
    along, within = group_axes(mesh, groups // accumulation)
    devices = devices_along(mesh, along)

    def spread(group_arrays):
        """Groups of a micro-step where they are computed."""
        place = NamedSharding(mesh, PartitionSpec(along, within or None))
        return jax.lax.with_sharding_constraint(group_arrays, place) if within else group_arrays

    def losses_of(params, teacher, memory, groups, keys, draws, schedule):
        """Mean loss over the groups of one micro-step, with metrics and features to enqueue."""
        def one(group, key, drawn):
            total, aux = task.loss(params, teacher, memory, group, key, schedule, drawn)
            return total, (aux.metrics, aux.enqueue)

        totals, (metrics, enqueue) = jax.vmap(one, spmd_axis_name=along)(
            spread(groups), keys, draws)
        return jnp.mean(totals), (jax.tree.map(jnp.mean, metrics), enqueue)

    def gradients(params, teacher, memory, groups, keys, draws, schedule):
        value_and_grad = jax.value_and_grad(losses_of, has_aux=True)
        if accumulation == 1:
            (_, aux), grads = value_and_grad(params, teacher, memory, groups, keys, draws, schedule)
            return grads, *aux

        def body(total, micro):
            (_, (metrics, enqueue)), grads = value_and_grad(params, teacher, memory, *micro,
                                                            schedule)
            return jax.tree.map(jnp.add, total, (grads, metrics)), enqueue

        micros = micro_steps((groups, keys, draws), accumulation, devices)
        shapes = jax.eval_shape(
            lambda micro: value_and_grad(params, teacher, memory, *micro, schedule),
            jax.tree.map(lambda x: x[0], micros))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[1], shapes[0][1][0]))
        (grads, metrics), enqueue = jax.lax.scan(body, zeros, micros)
        grads, metrics = jax.tree.map(lambda x: x / accumulation, (grads, metrics))
        return grads, metrics, join_micro_steps(enqueue, devices)

    def step(state, batch, draws):
        params = task.prepare(state.params)
        with jax.named_scope("teacher_average"):
            teacher = optax.incremental_update(task.teacher_of(params), state.teacher,
                                               1 - momentum)
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(jnp.arange(groups))
        with placed_on(mesh, rules, within):
            grads, metrics, enqueue = gradients(
                params, teacher, state.memory, split_groups(batch, group_size), keys, draws,
                task.schedule(state.step))
        # Every process needs the whole batch's features, in global order, for its queues.
        enqueue = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), enqueue)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, params)
            metrics["grad_norm"] = optax.tree.norm(grads)
            params = optax.apply_updates(params, updates)
        with jax.named_scope("memory"):
            memory = task.update_memory(state.memory, enqueue)
        return TrainState(step=state.step + 1, params=params, teacher=teacher,
                          opt_state=opt_state, memory=memory), metrics

    rows = sharded_batch(mesh)
    by_group = NamedSharding(mesh, PartitionSpec(along))
    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, rows, by_group),
                   out_shardings=(shardings, replicated(mesh)))
