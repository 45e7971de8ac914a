"""Image-text retrieval with ImageBERT: fine-tuned on COCO, or on Flickr30k.

    albef train --config configs/imagebert_retrieval.py --init runs/imagebert \\
      --workdir runs/imagebert_coco
    albef train --config configs/imagebert_retrieval.py:flickr30k --init runs/imagebert \\
      --workdir runs/imagebert_flickr30k

Paper: Qi et al., https://arxiv.org/abs/2001.07966. --init is a run of imagebert_pretrain.py. The
manifests coco_train.json, coco_val.json and coco_test.json (or flickr30k_...), in the format of
pretrain_4m.py, are in data/imagebert, or FOLDER (`coco:FOLDER`), and regions as there.

The paper compares three losses, alone and together: objective.binary, multiclass and triplet are
their weights, objective.negatives_per_pair the number of negatives of each pair. The binary one is best.

Hardware: the paper used 4 V100 GPUs. Testing scores every pair: 125 million on COCO. With features
of an ALBEF model (`albef embed`) in evals.test.candidates only the best of it are scored.

Expected, published by the authors, not measured here, R@1/5/10: Flickr30K texts 87.0/97.6/99.2 and
images 73.1/92.6/96.0; COCO, 5,000 images, 66.4/89.8/94.4 and 50.5/78.7/87.1; COCO, mean of five
times 1,000 images, 85.4/98.7/99.8 and 73.6/94.3/97.2 (table 2).
"""

from albef_jax.config import default_config

FOLDS = {"coco": 5, "flickr30k": 0}  # of the test set


def get_config(variant=None):
    """`variant`: 'coco' or 'flickr30k', and ':' and the folder of the manifests."""
    name, _, folder = (variant or "coco").partition(":")
    folder = folder or "data/imagebert"
    config = default_config("imagebert_retrieval")
    config.batch_size, config.group_size = 24, 12
    config.steps = 130_000
    config.optimizer.update(peak_lr=5e-5, warmup_share=0.1, schedule="linear")
    config.objective.update(binary=1.0, multiclass=0.0, triplet=0.0, negatives_per_pair=1)
    config.data.tokenizer = "bert-base-uncased"

    def pairs(split):
        return dict(kind="regions", files=(f"{folder}/{name}_{split}.json",),
                    image_roots=(folder,), regions=(f"{folder}/regions",))

    config.data.source = pairs("train")
    config.evals.val = dict(kind="pair_retrieval", source=pairs("val"), max_images=200,
                            every=10_000)
    config.evals.test = dict(kind="pair_retrieval", source=pairs("test"), folds=FOLDS[name])
    config.checkpoint.update(every=10_000, best_metric="val/r_mean")
    return config
