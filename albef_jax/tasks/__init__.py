"""Our tasks by name. Others are named by their class; see `tasks.base.Task`."""

from albef_jax.files import find_class
from albef_jax.tasks.base import Task

TASKS = {
    "pretrain": "albef_jax.tasks.pretrain:Pretrain",
    "retrieval": "albef_jax.tasks.retrieval:Retrieval",
    "vqa": "albef_jax.tasks.vqa:Vqa",
    "ve": "albef_jax.tasks.entailment:Entailment",
    "nlvr": "albef_jax.tasks.nlvr:Nlvr",
    "nlvr_pretrain": "albef_jax.tasks.text_assignment:TextAssignment",
    "scale_pretrain": "albef_jax.tasks.scale:ScalePretrain",
    "scale_classify": "albef_jax.tasks.scale_classify:ScaleClassify",
    "imagebert_pretrain": "albef_jax.tasks.imagebert:ImageBertPretrain",
    "imagebert_retrieval": "albef_jax.tasks.imagebert_retrieval:ImageBertRetrieval",
}


def task_class(name):
    """The class of the task that `config.task` names.

    Raises:
      UserError: there is none.
    """
    return find_class(name, TASKS, Task, "config.task")


def make_task(config):
    """The task of a config in which everything is filled in; see `Task.resolve`."""
    return task_class(config.task)(config)
