"""ALBEF from scratch on Flickr8k (6,000 images, 30,000 captions), a small model.

Data: M. Hodosh et al., JAIR 47 (2013); model: Li et al., https://arxiv.org/abs/2107.07651.
The folder holds train.json, dev.json (official manifest format) and images.tar.
"""

from albef_jax.config import default_config

FOLDER = "data/flickr8k"


def get_config(folder=None):
    """`folder`: where train.json, dev.json and images.tar are."""
    folder = folder or FOLDER
    config = default_config()
    config.batch_size = config.group_size = 128
    config.epochs = 30
    config.model.update(
        image_size=96, patch_size=12, vit_width=256, vit_depth=6, vit_heads=4,
        text_width=256, text_layers=3, fusion_layers=3, text_heads=4, text_mlp_width=1024,
        max_positions=64, embed_dim=128, dtype="float32")
    config.objective.update(queue_size=2048, positives="image")
    config.optimizer.update(peak_lr=5e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=100)
    config.data.source.update(files=(f"{folder}/train.json",),
                              image_roots=(f"{folder}/images.tar",), merge_images=True)
    config.data.update(crop_scale=(0.4, 1.0), vocab_size=4000)
    dev = dict(files=(f"{folder}/dev.json",), image_roots=(f"{folder}/images.tar",), kind="json",
               merge_images=True)
    config.evals.retrieval = dict(kind="retrieval", source=dev, k=32, every=0)
    return config
