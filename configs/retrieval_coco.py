"""Image-text retrieval on COCO: ALBEF fine-tuned with ITC and ITM.

    albef train --config configs/retrieval_coco.py:FOLDER --init runs/albef \\
      --workdir runs/retrieval_coco
    albef evaluate runs/retrieval_coco

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run
of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out) holds coco_train.json, coco_val.json and coco_test.json, in the
format of the public code; image names are relative to FOLDER/images unless they are absolute.
The last checkpoint is evaluated on both splits; the best one on val is kept beside it:
`albef evaluate runs/retrieval_coco --step STEP` has its test figures.

Hardware: the paper used 8 A100 GPUs, 32 pairs each. Any number of devices that divides 8 gives the
same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected on the 5,000 test images, published by the authors (table 2), not measured here, R@1/5/10:
texts 73.1/91.4/96.0 and images 56.8/81.5/89.2 after 4M images; 77.6/94.3/97.2 and 60.7/84.3/90.5
after 14M.
"""

from albef_jax.config import default_config
from albef_jax.tasks.retrieval import Retrieval

EPOCH = 566_747 // 256  # steps


def get_config(folder=None):
    """`folder`: where the manifests are."""
    folder = folder or "data/albef"
    config = default_config("retrieval")
    config.batch_size, config.group_size = 256, 32
    config.epochs = 5
    config.model.image_size = 384
    config.objective.update(temperature=0.07, queue_size=65536, momentum=0.995, alpha_itc=0.4)
    config.optimizer.update(peak_lr=1e-5, min_lr=1e-6, warmup_lr=1e-5, warmup_steps=100,
                            weight_decay=0.02, schedule="albef_steps")
    images = (f"{folder}/images",)
    config.data.source.update(files=(f"{folder}/coco_train.json",), image_roots=images)
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(0.5, 1.0), **Retrieval.TEXTS)
    for split, every in (("val", EPOCH), ("test", 0)):
        source = dict(kind="json", files=(f"{folder}/coco_{split}.json",), image_roots=images)
        config.evals[split] = dict(kind="retrieval", source=source, k=256, ks=(),
                                   every=every, batch_size=64)
    config.checkpoint.update(every=EPOCH, best_metric="val/r_mean")
    return config
