"""The tests' config, a file that `albef train --config` reads: few narrow layers, made-up data."""

from albef_jax.config import default_config


def get_config(variant=None):
    """float32, dropout on, two groups of 8 pairs; `learn`: what is learned in 200 steps."""
    config = default_config()
    config.batch_size, config.group_size = 16, 8
    config.steps, config.log_every = 60, 1
    config.model.update(
        image_size=32, patch_size=8, vit_width=32, vit_depth=1, vit_heads=2, vit_mlp_ratio=2.0,
        text_width=32, text_layers=1, fusion_layers=1, text_heads=2, text_mlp_width=64,
        max_positions=32, embed_dim=16, dtype="float32", init_std=0.1,
        vocab_size=100, cls_id=2, mask_id=4)
    config.objective.update(queue_size=64, alpha_ramp_steps=20)
    config.optimizer.update(peak_lr=4e-3, min_lr=1e-4, warmup_lr=1e-5, warmup_steps=10)
    config.data.source = dict(kind="synthetic", size=40, image_size=32)
    config.data.update(text_length=16, vocab_size=200, engine="pillow", workers=2)
    config.checkpoint.update(every=20)
    if variant == "learn":
        # One batch of 16 pairs, seen again and again, and a teacher that follows closely: with
        # any seed every loss is far below chance before step 150.
        config.group_size, config.steps, config.log_every = 16, 200, 10
        config.model.update(dropout=0.0, attention_dropout=0.0)
        config.data.source.size = 16
        config.data.update(crop_scale=(0.9, 1.0), flip=0.0, randaugment=(0, 0))
        config.objective.update(queue_size=16, momentum=0.5, positives="image",
                                negatives="random")
        config.checkpoint.every = 1000
        held_out = dict(kind="synthetic", size=24, image_size=32)
        config.evals.dev = dict(kind="retrieval", source=held_out, batch_size=8, k=4, every=0)
        config.evals.words = dict(kind="masked", source=held_out, batch_size=8, every=0)
    return config
