"""Classes of products (M5Product): SCALE fine-tuned on the joint CLS tokens of all modalities.

    albef train --config configs/scale_classify.py:FOLDER --init runs/scale --workdir runs/classes

Paper: Dong et al., https://arxiv.org/abs/2109.04275; values as in the public code. --init is a run
of scale_pretrain.py, or an import of a published checkpoint, whose model is `:released` or
`:released:FOLDER` here too. FOLDER (data/m5product if left out) holds classify_train.json and
classify_test.json with a "label" of each product, classes.json, the list of all 1,805 labels, and
features as scale_pretrain.py says.

Hardware: as scale_pretrain.py. Nothing is compared within a group; its size decides nothing.

Expected, published by the authors on the subset (their benchmark table), not measured here:
accuracy 77.42 with titles alone, 85.50 with all modalities.
"""

from albef_jax.config import default_config
from albef_jax.tasks.scale import as_released


def get_config(variant=None):
    """`variant`: 'released', the folder of the data, or 'released:FOLDER'."""
    name, _, rest = (variant or "").partition(":")
    folder = (rest if name == "released" else variant) or "data/m5product"
    config = default_config("scale_classify")
    config.batch_size = config.group_size = 64
    config.epochs, config.seed = 20, 42

    def source(split):
        return dict(
            kind="products", files=(f"{folder}/classify_{split}.json",),
            regions=(f"{folder}/regions.tsv",), video=(f"{folder}/video",),
            audio=(f"{folder}/audio",), classes=(f"{folder}/classes.json",))

    config.data.source = source("train")
    config.data.tokenizer = "bert-base-chinese"
    return as_released(config) if name == "released" else config
