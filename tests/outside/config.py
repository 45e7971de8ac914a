"""Sounds and texts, for a minute on a laptop.

    albef train --config tests/outside/config.py --workdir runs/sounds
"""

from pathlib import Path

from albef_jax.config import default_config

SOUNDS = Path(__file__).with_name("sounds.py")


def get_config(variant=None):
    del variant
    config = default_config(f"{SOUNDS}:SoundText")
    config.batch_size, config.group_size = 32, 16
    config.steps, config.log_every = 300, 20
    config.optimizer.update(peak_lr=1e-2, min_lr=1e-4, warmup_lr=0.0, warmup_steps=20,
                            schedule="linear", clip="global")
    config.data.source = dict(kind=f"{SOUNDS}:Tones", size=720)
    config.data.vocab_size = 60
    held_out = dict(kind=f"{SOUNDS}:Tones", size=90, seed=1)
    config.evals.dev = dict(kind=f"{SOUNDS}:KindEvaluator", source=held_out, every=100)
    config.checkpoint.update(every=50, best_metric="dev/kind")
    return config
