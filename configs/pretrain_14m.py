"""ALBEF pre-training on 14M images: those of pretrain_4m.py and Conceptual 12M.

    albef train --config configs/pretrain_14m.py:FOLDER --workdir runs/pretrain_14m

Paper: Li et al., https://arxiv.org/abs/2107.07651; values as in the public code.
FOLDER: as in pretrain_4m.py, with cc12m.json.
Hardware: the paper used 8 A100 GPUs; as in pretrain_4m.py.

Expected, published by the authors, not measured here, and from DeiT-B/16 and BERT weights, while
this config starts from random ones: fine-tuned Flickr30K R@1 95.9 (texts) and 85.6 (images);
zero-shot Flickr30K, fine-tuned on COCO, 94.1 and 82.8 (tables 2 and 3).
"""

import pathlib
import runpy

BASE = runpy.run_path(str(pathlib.Path(__file__).with_name("pretrain_4m.py")))


def get_config(folder=None):
    """`folder`: where the manifests are."""
    return BASE["get_config"](folder, (*BASE["MANIFESTS"], "cc12m"))
