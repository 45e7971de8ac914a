"""ALBEF from scratch on Flickr8k (6,000 images, 30,000 captions), a small model.

    albef train --config configs/flickr8k.py:FOLDER --workdir runs/flickr8k

Data: M. Hodosh et al., JAIR 47 (2013); model: Li et al., https://arxiv.org/abs/2107.07651.
FOLDER holds train.json, dev.json (official manifest format) and images.tar.
Hardware: sized for two CPU cores. Expected: docs/results.md has the measured curve and table.
"""

from albef_jax.config import default_config

FOLDER = "data/flickr8k"


def get_config(folder=None):
    """`folder`: where train.json, dev.json and images.tar are."""
    folder = folder or FOLDER
    config = default_config()
    config.batch_size = config.group_size = 64
    config.epochs = 20
    config.model.update(
        image_size=96, patch_size=16, vit_width=192, vit_depth=4, vit_heads=3,
        text_width=192, text_layers=2, fusion_layers=2, text_heads=3, text_mlp_width=768,
        max_positions=32, embed_dim=128, dropout=0.0, attention_dropout=0.0, dtype="float32",
        init_std=0.04)
    # From scratch the encoders change so fast that entries of a queue are told apart from the
    # batch by their age alone, and the keys of a slow teacher are stale: ITC falls without aligning
    # anything (docs/results.md). Hence no queue and a quick teacher.
    config.objective.update(queue_size=0, momentum=0.95, positives="image",
                            alpha_ramp_steps=2000)
    # Hard negatives alone leave ITM where it knows nothing (docs/training.md, "When ITM does not
    # learn").
    config.objective.update(random_negatives=0.5, match_weight=2.0)
    config.optimizer.update(peak_lr=6e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=100,
                            weight_decay=0.05, b2=0.98)
    config.data.source.update(files=(f"{folder}/train.json",),
                              image_roots=(f"{folder}/images.tar",), merge_images=True)
    config.data.update(crop_scale=(0.6, 1.0), randaugment=(0, 0), vocab_size=4000,
                       text_length=20)
    dev = dict(kind="json", files=(f"{folder}/dev.json",), image_roots=(f"{folder}/images.tar",))
    config.evals.retrieval = dict(kind="retrieval", source=dev, k=16, rank="sum", every=465,
                                  batch_size=256)
    config.evals.matched = dict(kind="retrieval", source=dev, k=16, every=0, batch_size=256)
    config.evals.matching = dict(kind="matching", source=dev, every=465)
    config.evals.masked = dict(kind="masked", source=dev, every=465, batch_size=256)
    config.checkpoint.update(every=465, best_metric="retrieval/r_mean")
    return config
