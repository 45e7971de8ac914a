"""SCALE pre-training on products with titles, tables, images, videos and sounds (M5Product).

    albef train --config configs/scale_pretrain.py:FOLDER --workdir runs/scale

Paper: Dong et al., https://arxiv.org/abs/2109.04275; values as in the public code. `:released` or
`:released:FOLDER` trains what that code trains where it and the paper disagree: tables and videos
go through the encoders of titles and images, masked heads read the encoders' outputs, padding is
mixed between products, and the optimizer is BERT's with a tenth of the rate for the title's layers.
FOLDER (data/m5product if left out) holds pretrain.json, the annotations ({id: {"title", "pv",
"label"}}), regions.tsv, the regions of a detector, and video/ and audio/ with ID.npy for each
product that has them. Titles and tables are Chinese; with others, set data.tokenizer and init.bert.

Hardware: the global contrast compares all 64 products of a batch, on any number of devices that
divides 64; docs/plans.md has plans for v5e:2x4 (3.6 of 16 GiB) and an H100. Larger batches compare
more: raise batch_size and group_size together, up to 1024 on v5e:2x4.

Expected, published by the authors after fine-tuning on the subset (their benchmark table), not
measured here: mAP@1 70.62 of coarse retrieval with all modalities, accuracy 85.50 of 1,805 classes.
"""

from albef_jax.config import default_config
from albef_jax.tasks.scale import as_released


def get_config(variant=None):
    """`variant`: 'released', the folder of the data, or 'released:FOLDER'."""
    name, _, rest = (variant or "").partition(":")
    folder = (rest if name == "released" else variant) or "data/m5product"
    config = default_config("scale_pretrain")
    config.batch_size = config.group_size = 64
    config.epochs, config.seed = 20, 42
    config.init.update(bert="bert-base-chinese", bert_layers=tuple(range(6)))
    config.data.source = dict(
        kind="products", files=(f"{folder}/pretrain.json",), regions=(f"{folder}/regions.tsv",),
        video=(f"{folder}/video",), audio=(f"{folder}/audio",))
    config.data.tokenizer = "bert-base-chinese"
    return as_released(config) if name == "released" else config
