"""What ends a run, and what is kept of it: never a state that is not finite."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.core.state import TrainState
from albef_jax.errors import UserError
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.guards import (
    check_finite,
    check_restored,
    first_not_finite,
    readable_out_of_memory,
    saved_on_error,
)

NAMES = ("itc", "loss", "grad_norm")
OPTIONS = ConfigDict(dict(keep_latest=2, keep_every=0, best_metric="", best_mode="max",
                          checksums=True))
GOOD = {"itc": 1.0, "loss": jnp.float32(2.0), "grad_norm": 3.0}


def state_of(value):
    return TrainState(step=jnp.int32(7), params={"w": jnp.full((3,), value, jnp.float32)},
                      teacher={}, opt_state=(), memory={})


def save_at_an_error(tmp_path, state, metrics):
    """The steps that are on disk after a sentence about the data ended the run at step 7."""
    checkpointer = Checkpointer(tmp_path, OPTIONS)
    with pytest.raises(UserError, match="too many"):
        with saved_on_error(checkpointer, 7, state, NAMES, metrics):
            raise UserError("There are too many broken images.")
    checkpointer.close()
    return sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_data_error_keeps_what_was_learned(tmp_path):
    assert save_at_an_error(tmp_path, state_of(1.0), GOOD) == [7]


@pytest.mark.parametrize("state, metrics", [
    (1.0, GOOD | {"loss": jnp.float32(np.nan)}),
    (1.0, GOOD | {"grad_norm": np.inf}),
    (np.nan, GOOD),  # the update after a good loss
    (1.0, None),  # nothing was trained yet
])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, state, metrics):
    """With a large log_every nobody has looked at the loss when the data ends the run."""
    assert save_at_an_error(tmp_path, state_of(state), metrics) == []


def test_the_first_term_is_named(tmp_path):
    assert first_not_finite(NAMES, GOOD) is None
    bad = GOOD | {"grad_norm": np.inf, "loss": np.nan}
    assert first_not_finite(NAMES, bad) == "loss"
    checkpointer = Checkpointer(tmp_path, OPTIONS)
    with pytest.raises(UserError, match="loss is nan at step 9; .*no checkpoint was saved before"):
        check_finite(9, bad, NAMES, checkpointer)
    checkpointer.save(7, {"a": jnp.zeros(2)}, wait=True)
    with pytest.raises(UserError, match="the checkpoint of step 7 is intact"):
        check_finite(9, bad, NAMES, checkpointer)
    check_finite(9, GOOD, NAMES, checkpointer)
    checkpointer.close()


@pytest.mark.parametrize("task, micro_steps, said", [
    ("pretrain", 2, "set --config.model.remat=True, --config.model.remat_save=('qkv', "
                    "'attention'), --config.accumulation=4, --config.mesh.fsdp=4, or a lower "
                    "objective.queue_size or model.image_size or batch_size;"),
    ("albef_jax.tasks.base:Task", 2, "set --config.accumulation=4, or a lower batch_size;"),
    ("albef_jax.tasks.base:Task", 4, "set a lower batch_size;"),
])
def test_out_of_memory_names_the_switches_of_the_task(task, micro_steps, said):
    """Not those that are set already: bfloat16, and two or four micro-steps."""
    config = default_config()
    config.task, config.accumulation = task, micro_steps
    with pytest.raises(UserError) as error:
        with readable_out_of_memory(config):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 3 GiB")
    assert said in str(error.value) and "batch_size=512" in str(error.value)


def test_a_checkpoint_that_has_diverged_is_not_gone_on_from(tmp_path):
    """As versions before wrote them: the one before it is offered."""
    checkpointer = Checkpointer(tmp_path, OPTIONS)
    for step, value in ((4, 1.0), (8, np.nan)):
        checkpointer.save(step, state_of(value), wait=True)
    check_restored(4, checkpointer.restore(state_of(0.0), 4)[0], checkpointer)
    with pytest.raises(UserError, match=r"step 8 in .* is damaged \(its parameters are not finite\); "
                                        "to go on from step 4, move .*8 away"):
        check_restored(8, checkpointer.restore(state_of(0.0))[0], checkpointer)
    checkpointer.close()
