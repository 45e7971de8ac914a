"""What can go wrong in a run, as sentences, and what is saved of it."""

import contextlib
import itertools
import math

import jax
import optax

from albef_jax.errors import UserError, first_line
from albef_jax.parallel.processes import several
from albef_jax.tasks import task_class


@contextlib.contextmanager
def saved_on_error(checkpointer, step, state, names, metrics):
    """Saves the state before a sentence about the data ends the run: nothing is lost.

    Not a state that `check_finite` would refuse (`names` and `metrics` are of its step; None before
    the first); and not one of several processes: the others are not there to save their part.
    """
    try:
        yield
    except UserError:
        if metrics is not None and not several():
            norm = {"parameters": optax.tree.norm(state.params)}
            if not first_not_finite((*names, "parameters"), {**metrics, **norm}):
                checkpointer.save(step, state, wait=True)
        raise


def first_not_finite(names, metrics):
    """The first of the names whose metric, on the device or not, is NaN or infinite; else None."""
    values = jax.device_get({name: metrics[name] for name in names if name in metrics})
    return next((name for name in names if not math.isfinite(values.get(name, 0.0))), None)


parameter_norm = jax.jit(optax.tree.norm)


def check_restored(step, state, checkpointer):
    """UserError where a checkpoint holds a model that has diverged, with the one before it."""
    if first_not_finite(("parameters",), {"parameters": parameter_norm(state.params)}):
        raise checkpointer.damage(step, "its parameters are not finite")


def check_finite(step, metrics, names, checkpointer):
    """Stops a run whose state must not be saved; `names` of metrics are looked at in this order.

    The UserError names the first non-finite one, and the last good checkpoint.
    """
    name = first_not_finite(names, metrics)
    if name:
        latest = checkpointer.latest_step()
        kept = (f"run the same command again: the checkpoint of step {latest} is intact"
                if latest else "start again: no checkpoint was saved before")
        raise UserError(f"{name} is {float(metrics[name])} at step {step}; lower "
                        f"optimizer.peak_lr and {kept}.")


@contextlib.contextmanager
def readable_out_of_memory(config):
    """Turns the runtime's out-of-memory error into a UserError with the task's switches for it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        task = task_class(config.task)
        flags, lower = lighter_values(config, task.lighter), f"a lower {' or '.join(task.smaller)}"
        remedies = ", ".join([*flags, f"or {lower}"]) if flags else lower
        raise UserError(
            f"The device ran out of memory with batch_size={config.batch_size} in "
            f"{config.accumulation} micro-step(s): set {remedies}; `albef plan` says what "
            f"fits ({first_line(error)}).") from error


def lighter_values(config, lighter):
    """Flags of `Task.lighter` values: each key once, with the first value that would help."""
    found = {}
    for key, value in itertools.chain.from_iterable(values.items() for values in lighter):
        # A switch that is on, or as many micro-steps or devices, help no more.
        reached = config[key] >= value if isinstance(value, int) else config[key] == value
        if not reached:
            found.setdefault(key, f"--config.{key}={value}")
    return list(found.values())
