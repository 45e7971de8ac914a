"""Tasks by name. A new task is one file here, one line below and one config."""

from albef_jax.errors import UserError
from albef_jax.tasks.entailment import Entailment
from albef_jax.tasks.nlvr import Nlvr
from albef_jax.tasks.pretrain import Pretrain
from albef_jax.tasks.retrieval import Retrieval
from albef_jax.tasks.text_assignment import TextAssignment
from albef_jax.tasks.vqa import Vqa

TASKS = {
    "pretrain": Pretrain,
    "retrieval": Retrieval,
    "vqa": Vqa,
    "ve": Entailment,
    "nlvr": Nlvr,
    "nlvr_pretrain": TextAssignment,
}


def task_class(config):
    """The class of the task that `config.task` names.

    Raises:
      UserError: unknown name.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task is {config.task!r}; known tasks: {', '.join(TASKS)}.")
    return TASKS[config.task]


def make_task(config):
    """Builds the task that `config.task` names; see `task_class`."""
    return task_class(config)(config)


def check_fields(config, source):
    """Checks that the training data has what the task learns from.

    Raises:
      UserError: it lacks a field, or has another number of images per example or of classes.
    """
    task = task_class(config)
    for field in task.needs:
        if field not in source.fields:
            raise UserError(f"config.task {config.task!r} learns from the field {field!r}, which "
                            f"data.source of kind {config.data.source.kind!r} does not have; "
                            "give it a source made for this task.")
    if task.views != source.views:
        raise UserError(f"config.task {config.task!r} looks at {task.views} image(s) per text, but "
                        f"data.source of kind {config.data.source.kind!r} has {source.views}; give "
                        "it a source made for this task.")
    if "label" in task.needs and len(source.class_names) != task.classes:
        raise UserError(f"config.task {config.task!r} tells {task.classes} classes apart, but "
                        f"data.source of kind {config.data.source.kind!r} has "
                        f"{len(source.class_names)} ({', '.join(source.class_names)}); give it a "
                        "source made for this task.")
