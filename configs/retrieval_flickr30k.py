"""Image-text retrieval on Flickr30k: fine-tuned on it, or zero-shot.

Fine-tuned:

    albef train --config configs/retrieval_flickr30k.py:FOLDER --init runs/albef \\
      --workdir runs/retrieval_flickr30k

Zero-shot, in the sense of the paper: the model is fine-tuned on COCO and has seen no image of
Flickr30k. It is not the pre-trained model, which is several points worse, and not the one above:

    albef train --config configs/retrieval_coco.py --init runs/albef --workdir runs/retrieval_coco
    albef evaluate runs/retrieval_coco --config configs/retrieval_flickr30k.py:zero_shot

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run
of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out; `zero_shot:FOLDER` for the other) holds flickr30k_train.json,
flickr30k_val.json and flickr30k_test.json, in the format of the public code; image names are
relative to FOLDER/images unless they are absolute.

Hardware: the paper used 8 A100 GPUs, 32 pairs each; as in retrieval_coco.py.

Expected on the 1,000 test images, published by the authors (tables 2 and 3), not measured here,
R@1/5/10: fine-tuned, texts 94.3/99.4/99.8 and images 82.8/96.7/98.4 after 4M images,
95.9/99.8/100.0 and 85.6/97.5/98.9 after 14M; zero-shot, texts 90.5/98.8/99.7 and images
76.8/93.7/96.7 after 4M, 94.1/99.5/99.7 and 82.8/96.3/98.1 after 14M.
"""

from albef_jax.config import default_config
from albef_jax.tasks.retrieval import Retrieval

EPOCH = 145_000 // 256  # steps
ZERO_SHOT = "zero_shot"


def get_config(variant=None):
    """`variant`: the folder of the manifests, or 'zero_shot', or 'zero_shot:' and the folder."""
    zero_shot = (variant or "").partition(":")[0] == ZERO_SHOT
    folder = (variant or "").removeprefix(ZERO_SHOT).removeprefix(":") or "data/albef"
    config = default_config("retrieval")
    config.batch_size, config.group_size = 256, 32
    config.epochs = 10
    config.model.image_size = 384
    config.objective.update(temperature=0.07, queue_size=65536, momentum=0.995, alpha_itc=0.4)
    config.optimizer.update(peak_lr=1e-5, min_lr=1e-6, warmup_lr=1e-5, warmup_steps=100,
                            weight_decay=0.02, schedule="albef_steps")
    images = (f"{folder}/images",)
    config.data.source.update(files=(f"{folder}/flickr30k_train.json",), image_roots=images)
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(0.5, 1.0), **Retrieval.TEXTS)

    def evaluation(split, every):
        source = dict(kind="json", files=(f"{folder}/flickr30k_{split}.json",),
                      image_roots=images)
        return dict(kind="retrieval", source=source, k=128, ks=(), every=every, batch_size=64)

    if zero_shot:
        config.steps = config.epochs = 0  # it is evaluated, never trained
        config.evals.zero_shot_flickr30k = evaluation("test", 0)
        return config
    config.evals.val, config.evals.test = evaluation("val", EPOCH), evaluation("test", 0)
    config.checkpoint.update(every=EPOCH, best_metric="val/r_mean")
    return config
