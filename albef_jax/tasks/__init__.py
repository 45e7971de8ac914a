"""Tasks by name. A new task is one file here, one line below and one config."""

from albef_jax.errors import UserError
from albef_jax.tasks.pretrain import Pretrain

TASKS = {"pretrain": Pretrain}


def make_task(config):
    """Builds the task that `config.task` names.

    Raises:
      UserError: unknown name.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task is {config.task!r}; known tasks: {', '.join(TASKS)}.")
    return TASKS[config.task](config)
