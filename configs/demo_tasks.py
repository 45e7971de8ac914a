"""The downstream tasks on rendered scenes: `make demo-tasks`.

    albef train --config configs/demo_tasks.py:vqa --init runs/demo --workdir runs/tasks/vqa

after `make demo`; `vqa`, `nlvr`, `ve`, `retrieval`, `grounding` and `captions` are tasks,
`nlvr_pretrain` is text assignment, which `nlvr` starts from (--init runs/tasks/nlvr_pretrain).

Model: Li et al., https://arxiv.org/abs/2107.07651, made tiny; data: derived from the scene graphs
(`albef_jax/scenes`). The held-out scenes hold kinds of objects that training never shows.
Hardware: sized for two CPU cores. Expected: docs/results.md.
"""

import pathlib
import runpy

from albef_jax.config import with_task
from albef_jax.errors import UserError
from albef_jax.scenes.levels import DEMO

BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))
TASKS = ("retrieval", "vqa", "nlvr_pretrain", "nlvr", "ve", "grounding", "captions")
LEARNED = {"grounding": "retrieval", "captions": "vqa"}  # what is not learned under its own name


def get_config(task=None):
    """`task`: one of TASKS."""
    if task not in TASKS:
        raise UserError(f"configs/demo_tasks.py needs the name of a task, such as "
                        f"configs/demo_tasks.py:vqa; it has {', '.join(TASKS)}.")
    config = BASE["get_config"]()
    config.evals = {}
    config.objective.alpha_ramp_steps = 500
    config = with_task(config, LEARNED.get(task, task))
    config.steps = 2500
    # A fifth of the pre-training's: with more the fusion encoder loses what it has learned of
    # matching, and entailment and yes/no questions stay at chance.
    config.optimizer.update(peak_lr=2.5e-4, warmup_steps=50)
    config.checkpoint.every = 500
    globals()[task](config)
    return config


def scenes(kind, split="train", size=20_000, **options):
    """The block of a source of scenes."""
    return dict(kind=kind, level="demo", split=split, size=size, **options)


def held_out(kind, evaluator, **fields):
    """The block of an evaluator on the held-out scenes."""
    return dict(kind=evaluator, source=scenes(kind, "heldout", 512), every=500, batch_size=256,
                **fields)


def retrieval(config):
    config.steps = 600
    config.evals.retrieval = held_out("scenes", "retrieval", k=16, ks=(4,))


def vqa(config):
    config.data.source = scenes("scenes_vqa")
    config.data.update(answer_length=4, max_answers=1)
    config.evals.vqa = held_out("scenes_vqa", "vqa")


def nlvr_pretrain(config):
    config.steps = 800
    config.optimizer.peak_lr = 6e-4  # most of what it learns is new: which image is the second


def nlvr(config):
    config.data.source = scenes("scenes_nlvr")
    config.evals.nlvr = held_out("scenes_nlvr", "classification")


def ve(config):
    config.steps = 3500
    config.data.source = scenes("scenes_ve")
    config.evals.ve = held_out("scenes_ve", "classification")


def grounding(config):
    config.steps = 600
    config.data.source = scenes("scenes_grounding")
    config.evals.grounding = held_out("scenes_grounding", "grounding")


def captions(config):
    config.data.source = dict(kind="captions", source=scenes("scenes"))
    config.data.update(answer_length=DEMO.max_words + 2, max_answers=1)
    config.evals.captions = dict(
        kind="captions", source=dict(kind="captions", source=scenes("scenes", "heldout", 512)),
        every=500, batch_size=128)
