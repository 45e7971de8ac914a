"""What can go wrong in a run, as sentences, and what is saved of it."""

import contextlib
import math

import jax

from albef_jax.errors import UserError
from albef_jax.parallel.processes import several

# Looked at in this order; the parameters only before they are saved.
FINITE = ("itc", "itm", "mlm", "loss", "grad_norm", "parameters")


@contextlib.contextmanager
def saved_on_error(checkpointer, step, state):
    """Saves the state before a sentence about the data ends the run: nothing is lost.

    Not one of several processes: the others are not there to save their part.
    """
    try:
        yield
    except UserError:
        if step and not several():
            checkpointer.save(step, state, wait=True)
        raise


def check_finite(step, metrics, checkpointer):
    """Stops a run whose state must not be saved.

    Raises:
      UserError: naming the first non-finite term and the last good checkpoint.
    """
    for name in FINITE:
        if not math.isfinite(metrics.get(name, 0.0)):
            latest = checkpointer.latest_step()
            kept = (f"run the same command again: the checkpoint of step {latest} is intact"
                    if latest else "start again: no checkpoint was saved before")
            raise UserError(f"{name} is {metrics[name]} at step {step}; lower "
                            f"optimizer.peak_lr and {kept}.")


@contextlib.contextmanager
def readable_out_of_memory(config):
    """Turns the runtime's out-of-memory error into a sentence.

    Raises:
      UserError: with the three switches that lower memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise UserError(
            f"The device ran out of memory with batch_size={config.batch_size} in "
            f"{config.accumulation} micro-step(s), model.remat={config.model.remat} and "
            f"model.dtype={config.model.dtype!r}: set model.remat=True or model.dtype='bfloat16', "
            "raise accumulation, or lower objective.queue_size or batch_size; `albef plan` says "
            f"what fits ({str(error).splitlines()[0][:200]}).") from error
