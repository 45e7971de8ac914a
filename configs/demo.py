"""ALBEF on rendered scenes, from nothing to re-ranked retrieval in ten minutes: `make demo`.

    albef train --config configs/demo.py --workdir runs/demo
    albef train --config configs/demo.py:noise --workdir runs/noise

Model: Li et al., https://arxiv.org/abs/2107.07651, made tiny; data: `albef_jax/scenes`, made
on the first run. The held-out scenes hold pairs of colour and shape that training never shows.
`noise` swaps or damages 40% of the training captions; docs/results.md compares the switches of
the paper's ablation on it.
Hardware: sized for two CPU cores. Expected: docs/results.md.
"""

from albef_jax.config import default_config
from albef_jax.scenes.levels import DEMO

VARIANTS = ("noise",)


def get_config(variant=None):
    """`variant`: None or 'noise'."""
    config = default_config()
    config.batch_size = config.group_size = 32
    config.steps = 2400
    config.log_every = 40
    # A patch is a cell of the scenes' grid: an object is seen by one patch.
    config.model.update(
        image_size=DEMO.side, patch_size=DEMO.side // DEMO.grid, vit_width=128, vit_depth=3,
        vit_heads=4, text_width=128, text_layers=1, fusion_layers=2, text_heads=4,
        text_mlp_width=256, max_positions=32, embed_dim=64, dropout=0.0, attention_dropout=0.0,
        init_std=0.05, dtype="float32")
    # For a short run from scratch; docs/training.md says when to use the queue.
    config.objective.update(queue_size=0, momentum=0.95, alpha_ramp_steps=1000, mask_rate=0.3)
    config.optimizer.update(peak_lr=1.2e-3, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=150,
                            weight_decay=0.05, b2=0.98)
    config.data.source = dict(kind="scenes", level="demo", split="train", size=20_000)
    # A crop would cut objects off, a mirror image would make "left of" wrong, and another
    # palette "red".
    config.data.update(crop_scale=(1.0, 1.0), flip=0.0, randaugment=(0, 0), vocab_size=400,
                       text_length=DEMO.max_words + 1, engine="pillow")
    heldout = dict(kind="scenes", level="demo", split="heldout", size=512)
    config.evals.retrieval = dict(kind="retrieval", source=heldout, k=16, every=600,
                                  batch_size=256)
    config.evals.matching = dict(kind="matching", source=heldout, every=600)
    config.evals.masked = dict(kind="masked", source=heldout, every=600, batch_size=256,
                               words=DEMO.words)
    # One caption of each scene, the kinds of foils in turn.
    config.evals.foils = dict(kind="contrasts", every=600, batch_size=256, source=dict(
        kind="scenes_contrasts", level="demo", split="heldout", size=512, per_scene=1))
    if variant == "noise":
        config.steps = 800
        config.data.source.update(swapped=0.2, damaged=0.2)
        # Without ITC nothing chooses candidates, so all pairs of fewer images are scored.
        config.evals.retrieval.update(k=640, max_images=128, every=0)
    config.checkpoint.every = 300
    return config
