"""ViT-Ti/16 at 128 px and a BERT of width 192, for `albef bench` on a CPU.

    albef bench --config configs/bench_tiny.py

Hardware: any; float32. Nothing is trained, so there is no expected result beyond speed:
docs/results.md has the measured figures.
"""

from albef_jax.config import default_config

VARIANTS = ()


def get_config(variant=None):
    del variant
    config = default_config()
    config.batch_size = config.group_size = 16
    config.steps = 1000
    config.model.update(
        image_size=128, vit_width=192, vit_heads=3, text_width=192, text_heads=3,
        text_mlp_width=768, dtype="float32")
    config.objective.update(queue_size=4096, alpha_ramp_steps=0, mlm_budget=64)
    config.optimizer.steps_per_epoch = 100
    config.data.text_length = 30
    return config
