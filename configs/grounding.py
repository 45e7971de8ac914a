"""Weakly supervised grounding on RefCOCO+: trained on expressions without boxes, as retrieval.

    albef train --config configs/grounding.py:FOLDER --init runs/albef --workdir runs/grounding
    albef evaluate runs/grounding

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code. --init is a run
of pretrain_4m.py or pretrain_14m.py, or an import of the published checkpoint.
FOLDER (data/albef if left out) holds refcoco+_train.json and refcoco+_test.json (all three splits)
and a folder refcoco+ with dets.json, as published with the public code, and with refs(unc).p and
instances.json of REFER. Image names are relative to FOLDER/images.
Heat maps come from the third fusion layer; `--config.evals.testA.mode=itc` looks at a ViT block.

Hardware: the paper used 8 A100 GPUs, 32 pairs each. Any number of devices that divides 8 gives the
same run up to rounding; with fewer than 8 raise accumulation until it fits into memory.

Expected, published by the authors for 14M images, not measured here, accuracy at IoU 0.5 on
val, testA and testB: 58.46, 65.89 and 46.25 by the matching head, 51.58, 60.09 and 40.19 by ITC.
"""

from albef_jax.config import default_config

EPOCH = 120_191 // 256  # steps


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
    config.data.source = dict(kind="grounding", files=(f"{folder}/refcoco+_train.json",),
                              image_roots=images)
    # The public code cuts no expression of 30 words, which hardly ever have more than 36 tokens.
    # Whole images: a crop would lose what the expression is about.
    config.data.update(tokenizer="bert-base-uncased", crop_scale=(), text_length=40)
    for split in ("val", "testA", "testB"):
        source = dict(kind="grounding", files=(f"{folder}/refcoco+_test.json",),
                      image_roots=images, refer=f"{folder}/refcoco+", split=split,
                      detections=f"{folder}/refcoco+/dets.json")
        config.evals[split] = dict(kind="grounding", source=source, mode="itm", batch_size=32,
                                   every=EPOCH if split == "val" else 0)
    config.checkpoint.update(every=EPOCH, best_metric="val/iou_0.5")
    return config
