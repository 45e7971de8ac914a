"""A small ALBEF on your own image-caption pairs.

    albef train --config configs/own_data.py:FOLDER --workdir runs/own

Model: Li et al., https://arxiv.org/abs/2107.07651. FOLDER holds train.json and dev.json, lists of
{"image": name, "caption": text or [texts]}; image names are relative to FOLDER.
Hardware: any; `--config.model.dtype=bfloat16` is faster on TPUs and recent GPUs.
Expected: depends on the data. All three losses fall within the first epochs, and r_mean on
dev.json rises well above chance; watch `evals` for over-fitting, and train longer on more pairs.
"""

from albef_jax.config import default_config


def get_config(folder=None):
    """`folder`: where train.json and dev.json are."""
    folder = folder or "data/own"
    config = default_config()
    config.batch_size = config.group_size = 64
    config.model.update(image_size=128, vit_width=256, vit_depth=8, vit_heads=4, text_width=256,
                        text_layers=4, fusion_layers=2, text_heads=4, text_mlp_width=1024,
                        init_std=0.035, dtype="float32")
    # For a short run from scratch; docs/training.md says when to use the queue.
    # With hard negatives alone ITM from scratch learns nothing (docs/training.md).
    config.objective.update(queue_size=0, momentum=0.95, positives="image", random_negatives=0.5,
                            match_weight=2.0)
    config.optimizer.update(peak_lr=5e-4, warmup_steps=500, weight_decay=0.05, b2=0.98)
    config.data.source.update(files=(f"{folder}/train.json",), merge_images=True)
    dev = dict(kind="json", files=(f"{folder}/dev.json",))
    config.evals.retrieval = dict(kind="retrieval", source=dev, every=1000, max_images=1000, k=32)
    config.evals.matching = dict(kind="matching", source=dev, every=1000, max_images=1000)
    config.checkpoint.update(every=1000, best_metric="retrieval/r_mean")
    return config
