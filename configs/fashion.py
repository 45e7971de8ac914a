"""SCALE on 3,000 shop photographs with titles and tables of properties, a small model.

    for split in train dev; do
      albef features image FOLDER/$split.json --image-roots FOLDER/images.tar \
        --out FOLDER/features --patch 12; done
    albef train --config configs/fashion.py:pretrain:tip:FOLDER --workdir runs/fashion
    albef train --config configs/fashion.py:classify:tip:FOLDER --init runs/fashion \
      --workdir runs/fashion_classes

Data: Fashion Product Images (P. Aggarwal, 2019); model: Dong et al.,
https://arxiv.org/abs/2109.04275. FOLDER holds train.json, dev.json and images.tar, with "category" as
[master, sub, article]. The letters are what the model knows of products: t title, i image, p table.
Hardware: sized for two CPU cores. Expected: the table that docs/fashion_experiment.py writes.
"""

from albef_jax.config import default_config

FOLDER = "data/fashion_products"
SUB, ARTICLE = 1, 2  # levels of categories
SUBSETS = ("t", "i", "p", "ti", "tip")


def get_config(variant=None):
    """`variant`: 'TASK:LETTERS:FOLDER', the task 'pretrain' or 'classify'."""
    task, letters, folder = (variant or f"pretrain:tip:{FOLDER}").split(":", 2)
    config = default_config(f"scale_{task}")
    config.batch_size = config.group_size = 64
    config.epochs = 10 if task == "pretrain" else 6
    config.log_every = 20
    config.model.update(
        modalities=letters, width=128, layers=2, text_heads=4, text_mlp_width=512, visual_heads=4,
        visual_mlp_width=256, jct_layers=2, jct_heads=4, jct_mlp_width=512, embed_dim=128,
        max_positions=64, max_jct=256, dtype="float32", init_std=0.05, missing_policy="zero_mask")
    config.objective.withheld = 0.3
    config.optimizer.update(peak_lr=1e-3, b2=0.98)
    config.data.update(vocab_size=2000, text_length=16, table_length=32, regions_length=36,
                       regions_width=3 * 12**2)

    def source(split):
        return dict(kind="products", files=(f"{folder}/{split}.json",),
                    image_roots=(f"{folder}/images.tar",), regions=(f"{folder}/features",),
                    classes=f"{folder}/train.json", coarse=SUB, fine=ARTICLE)

    config.data.source = source("train")
    common = dict(source=source("dev"), every=0,
                  subsets=tuple(some for some in SUBSETS if set(some) <= set(letters)))
    config.evals.retrieval = dict(kind="product_retrieval", **common)
    config.evals.clusters = dict(kind="product_clustering", **common)
    if task == "classify":
        config.model.classes = 27
        config.evals.accuracy = dict(kind="product_classification", **common)
    else:
        config.objective.simcl_gradient = False
    return config
