"""ALBEF pre-training on 14M images: those of pretrain_4m.py and Conceptual 12M.

    albef train --config configs/pretrain_14m.py:VARIANT,FOLDER --workdir runs/pretrain_14m

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code.
FOLDER (data/albef if left out): as in pretrain_4m.py, with cc12m.json. VARIANT is one of

- paper (if left out): 8 groups of 64. The paper used 8 A100 GPUs; as in pretrain_4m.py.
- pod: 256 groups of 64 for a slice of 256 chips, one group a chip.
- large: ViT-L/16; huge: ViT-H/14 and a BERT of large width, whose state is spread over 8 chips
  (fsdp). 64 groups of 64.

Hardware: `albef plan` says what each needs on a slice (docs/plans.md). Only `paper` has published
results: batches of the others are larger, so their rate, momentum and warm-up are scaled by the
usual rules (docs/training.md) and nobody has trained them.

Expected of `paper`, published by the authors, not measured here, and from DeiT-B/16 and BERT
weights, while this config starts from random ones: fine-tuned Flickr30K R@1 95.9 (texts) and 85.6
(images); zero-shot Flickr30K, fine-tuned on COCO, 94.1 and 82.8 (tables 2 and 3).
"""

import pathlib
import runpy

BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("pretrain_4m.py")))


def get_config(variant=None):
    """`variant`: VARIANT, FOLDER, or both with a comma between."""
    name, _, folder = (variant or "paper").partition(",")
    if name not in RECIPES:
        name, folder = "paper", variant
    config = BASE["get_config"](folder, (*BASE["MANIFESTS"], "cc12m"))
    config.data.examples = 14_100_000  # unique images, section 3.3; a caption is drawn for each
    RECIPES[name](config)
    return config


def pod(config):
    """32 times the batch: square-root scaling of the rate, the EMA's memory in pairs kept."""
    config.batch_size = 16384
    config.objective.momentum = 0.995**32
    config.optimizer.update(peak_lr=5.7e-4, schedule="cosine", warmup_steps=500)
    config.model.update(remat=True, remat_save=("qkv", "attention"))


def large(config):
    """8 times the batch."""
    config.batch_size = 4096
    config.objective.momentum = 0.995**8
    config.optimizer.update(peak_lr=2.8e-4, schedule="cosine", warmup_steps=1000)
    config.model.update(vit_width=1024, vit_depth=24, vit_heads=16, scan=True, remat=True)
    config.mesh.fsdp = 8


def huge(config):
    """As `large`."""
    large(config)
    config.model.update(
        image_size=224, patch_size=14, vit_width=1280, vit_depth=32,
        text_width=1024, text_layers=12, fusion_layers=12, text_heads=16, text_mlp_width=4096)
    config.data.tokenizer = "bert-large-uncased"


RECIPES = {"paper": lambda config: None, "pod": pod, "large": large, "huge": huge}
