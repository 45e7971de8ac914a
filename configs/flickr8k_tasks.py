"""The five downstream tasks on small real data, from one pre-training on Flickr8k.

    albef train --config configs/flickr8k_tasks.py:vqa,FOLDER --init runs/flickr8k \
      --workdir runs/real/vqa

after a run of configs/flickr8k.py. The first word names the task: `retrieval`, `vqa`,
`nlvr_pretrain` (text assignment, which `nlvr` starts from), `nlvr`, `ve` or `grounding`.

Model: Li et al., https://arxiv.org/abs/2107.07651. FOLDER holds the packs as folders: flickr8k
(train.json, dev.json, images.tar), daquar (the same and answer_list.json), nlvr, flickr8k_ve and
flickr8k_grounding (train.json, dev.json; images of flickr8k).
NLVR here is version 1: one picture of three boxes, of which each view holds two.
Hardware: sized for two CPU cores and a few minutes each. Expected: docs/results.md; far from the
published figures, since 6,000 images teach a small model little.
"""

import pathlib
import runpy

from albef_jax.config import with_task
from albef_jax.errors import UserError

BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("flickr8k.py")))
TASKS = ("retrieval", "vqa", "nlvr_pretrain", "nlvr", "ve", "grounding")
LEARNED = {"grounding": "retrieval"}  # what is not learned under its own name
LEFT_AND_RIGHT = ((0, 0, 250, 100), (150, 0, 400, 100))  # boxes 1 and 2, boxes 2 and 3


def get_config(variant=None):
    """`variant`: TASK or TASK,FOLDER."""
    task, _, folder = (variant or "").partition(",")
    folder = folder or "data"
    if task not in TASKS:
        raise UserError(f"configs/flickr8k_tasks.py needs the name of a task, such as "
                        f"configs/flickr8k_tasks.py:vqa,FOLDER; it has {', '.join(TASKS)}.")
    config = BASE["get_config"](f"{folder}/flickr8k")
    config.evals = {}
    config.objective.update(alpha_ramp_steps=200, momentum=0.98)
    config = with_task(config, LEARNED.get(task, task))
    config.model.update(image_size=112, dropout=0.1, attention_dropout=0.1)
    config.data.update(crop_scale=(0.6, 1.0), text_length=24)
    config.optimizer.update(peak_lr=2e-4, warmup_steps=40)
    config.log_every = 10
    globals()[task](config, folder)
    config.checkpoint.update(every=100, best_metric="")
    return config


def pack(kind, folder, split, images, **options):
    """The block of a source: one split of a pack."""
    return dict(kind=kind, files=(f"{folder}/{split}.json",),
                image_roots=(f"{images}/images.tar",), **options)


def retrieval(config, folder):
    config.epochs = 1
    data = f"{folder}/flickr8k"
    config.evals.retrieval = dict(kind="retrieval", source=pack("json", data, "dev", data), k=16,
                                  batch_size=256)


def vqa(config, folder):
    config.steps = 120  # of 92 per epoch
    data = f"{folder}/daquar"
    config.data.source = pack("vqa", data, "train", data)
    config.data.update(answer_length=10, max_answers=4, flip=0.0, text_length=32)
    config.evals.vqa = dict(kind="vqa", source=pack("vqa", data, "dev", data), k=64,
                            answers=f"{data}/answer_list.json", batch_size=128)


def nlvr_pretrain(config, folder):
    del folder  # the captions of Flickr8k
    config.epochs = 1


def nlvr(config, folder):
    config.epochs = 3
    data = f"{folder}/nlvr"
    views = dict(crops=LEFT_AND_RIGHT)
    config.data.source = pack("nlvr", data, "train", data, **views)
    config.data.update(crop_scale=(), flip=0.0)
    config.evals.nlvr = dict(kind="classification", source=pack("nlvr", data, "dev", data, **views),
                             batch_size=128)


def ve(config, folder):
    config.epochs = 4
    data, images = f"{folder}/flickr8k_ve", f"{folder}/flickr8k"
    config.data.source = pack("ve", data, "train", images)
    config.evals.ve = dict(kind="classification", source=pack("ve", data, "dev", images),
                           batch_size=128)


def grounding(config, folder):
    config.steps = 170  # half an epoch
    data, images = f"{folder}/flickr8k_grounding", f"{folder}/flickr8k"
    config.data.source = pack("grounding", data, "train", images)
    config.data.crop_scale = ()
    for mode in ("itm", "itc"):
        config.evals[mode] = dict(kind="grounding", mode=mode, batch_size=128,
                                  source=pack("grounding", data, "dev", images))
