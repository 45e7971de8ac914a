"""SCALE on rendered products, from nothing to a table of modalities in ten minutes: `make demo-scale`.

    albef train --config configs/demo_scale.py --workdir runs/scale/products
    albef train --config configs/demo_scale.py:classify --init runs/scale/products \
      --workdir runs/scale/classes

Model: Dong et al., https://arxiv.org/abs/2109.04275, made tiny; data: `albef_jax/scenes/products.py`,
drawn and sounded as they are read. Held-out products are of instances that training never shows.
Hardware: sized for two CPU cores. Expected: docs/results.md.
"""

from albef_jax.config import default_config
from albef_jax.data.sources.scenes_products import LENGTHS, WIDTHS

VARIANTS = ("classify",)


def get_config(variant=None):
    """`variant`: None to pre-train, or 'classify'."""
    config = default_config(f"scale_{variant or 'pretrain'}")
    config.batch_size = config.group_size = 64
    config.steps = 400 if variant else 900
    config.log_every = 20
    config.model.update(
        width=96, layers=1, text_heads=4, text_mlp_width=192, visual_heads=4, visual_mlp_width=192,
        jct_layers=2, jct_heads=4, jct_mlp_width=192, embed_dim=96, max_positions=64, max_video=16,
        max_audio=32, max_jct=128, dropout=0.0, attention_dropout=0.0, dtype="float32",
        init_std=0.05, missing_policy="zero_mask")
    config.objective.withheld = 0.3  # or it is bad at subsets, and the table does not rise
    config.optimizer.update(peak_lr=2e-3, b2=0.98)
    config.data.update(vocab_size=300, text_length=12, table_length=24)
    for name, length in LENGTHS.items():
        config.data.update({f"{name}_length": length, f"{name}_width": WIDTHS[name]})
    config.data.source = dict(kind="scenes_products", split="train", size=9600, copies=1, wrong=0.0,
                              complete=False)
    heldout = dict(kind="scenes_products", split="heldout", size=1200, copies=2)
    if variant:
        config.model.classes = 16
        config.evals.accuracy = dict(kind="product_classification", source=heldout, every=0)
    else:
        config.objective.simcl_gradient = False  # see docs/scale.md, "Short runs"
    config.evals.retrieval = dict(kind="product_retrieval", source=heldout, every=0)
    return config
