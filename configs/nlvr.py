"""NLVR2: is a sentence true of a pair of images?

    albef train --config configs/text_assignment.py:FOLDER --init runs/albef \\
      --workdir runs/text_assignment
    albef train --config configs/nlvr.py:FOLDER --init runs/text_assignment --workdir runs/nlvr

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run of
text_assignment.py, which starts from the pre-trained model.
FOLDER (data/albef if left out) holds nlvr_train.json, nlvr_dev.json and nlvr_test.json, in the
format of the public code; image names are relative to FOLDER/images.
The last checkpoint is evaluated on both splits; the best one on dev is kept beside it:
`albef evaluate runs/nlvr --step STEP` has its test figures.

Hardware: the paper used 8 A100 GPUs, 16 sentences each. Any number of devices that divides 8 gives
the same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected, published by the authors (table 4), not measured here, accuracy on dev and test-P: 80.24
and 80.50 after 4M images, 82.55 and 83.14 after 14M.
"""

from albef_jax.config import default_config
from albef_jax.tasks.nlvr import Nlvr

EPOCH = 86_373 // 128  # steps


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/albef"
    config = default_config("nlvr")
    config.batch_size, config.group_size = 128, 16
    config.epochs = 10
    config.model.image_size = 384
    config.objective.update(momentum=0.995, alpha=0.4)
    config.optimizer.update(peak_lr=2e-5, min_lr=1e-6, warmup_lr=1e-5, warmup_steps=100,
                            weight_decay=0.02, schedule="albef_steps")
    images = (f"{folder}/images",)
    config.data.source = dict(kind="nlvr", files=(f"{folder}/nlvr_train.json",),
                              image_roots=images)
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(0.5, 1.0), **Nlvr.TEXTS)
    for split, every in (("dev", EPOCH), ("test", 0)):
        source = dict(kind="nlvr", files=(f"{folder}/nlvr_{split}.json",), image_roots=images)
        config.evals[split] = dict(kind="classification", source=source, every=every,
                                   batch_size=16)
    config.checkpoint.update(every=EPOCH, best_metric="dev/accuracy")
    return config
