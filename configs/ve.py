"""Visual entailment on SNLI-VE: does an image entail a sentence, contradict it, or neither?

    albef train --config configs/ve.py:FOLDER --init runs/albef --workdir runs/ve

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run
of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out) holds ve_train.json, ve_dev.json and ve_test.json, in the format of
the public code; image names are relative to FOLDER/images/flickr30k-images, and `.jpg` is added to
those that have no ending.
The last checkpoint is evaluated on both splits; the best one on dev is kept beside it:
`albef evaluate runs/ve --step STEP` has its test figures.

Hardware: the paper used 8 A100 GPUs, 32 pairs each. Any number of devices that divides 8 gives the
same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected, published by the authors (table 4), not measured here, accuracy on dev and test: 80.14
and 80.30 after 4M images, 80.80 and 80.91 after 14M.
"""

from albef_jax.config import default_config
from albef_jax.tasks.entailment import Entailment

EPOCH = 529_527 // 256  # steps


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/albef"
    config = default_config("ve")
    config.batch_size, config.group_size = 256, 32
    config.epochs = 5
    config.model.image_size = 384
    config.objective.update(momentum=0.995, alpha=0.4, alpha_ramp_steps=0)
    config.optimizer.update(peak_lr=2e-5, min_lr=1e-6, warmup_lr=1e-5, warmup_steps=100,
                            weight_decay=0.02, schedule="albef_steps")
    images = (f"{folder}/images/flickr30k-images",)
    config.data.source = dict(kind="ve", files=(f"{folder}/ve_train.json",), image_roots=images)
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(0.5, 1.0), **Entailment.TEXTS)
    for split, every in (("dev", EPOCH), ("test", 0)):
        source = dict(kind="ve", files=(f"{folder}/ve_{split}.json",), image_roots=images)
        config.evals[split] = dict(kind="classification", source=source, every=every,
                                   batch_size=64)
    config.checkpoint.update(every=EPOCH, best_metric="dev/accuracy")
    return config
