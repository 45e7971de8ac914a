"""The official recipe at full size, traced without memory or compilation."""

from pathlib import Path

import jax
import numpy as np
import pytest

from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.parallel.mesh import make_mesh
from albef_jax.preflight.bench import noise_batch

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.slow
def test_official_step_does_less_than_the_public_code():
    """ViT-B/16 at 256 px, 512 pairs in 8 groups: the exact savings show in the compiler's count."""
    config = load_config(CONFIGS / "pretrain_4m.py", ["--config.steps=1000"])
    config.objective.alpha_ramp_steps = 100
    config.optimizer.steps_per_epoch = 100
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    lowered = parts.step.lower(parts.state, parts.batch_spec, None)
    counted = lowered.cost_analysis()["flops"] / config.batch_size
    public = sum(parts.task.flops(config).values())
    # The compiler counts element-wise work too, about 5% at this size.
    assert 0.7 * public < counted < 1.0 * public


def test_a_batch_of_noise_is_a_batch():
    config = load_config(CONFIGS / "bench_tiny.py")
    batch = noise_batch(config)
    assert batch["image"].shape == (16, 128, 128, 3) and batch["image"].dtype == np.uint8
    assert batch["text_ids"].shape == batch["text_mask"].shape == (16, 30)
    lengths = batch["text_mask"].sum(axis=1)
    assert lengths.min() >= 10 and (batch["text_ids"][:, 0] == config.model.cls_id).all()
    assert ((batch["text_ids"] == config.model.pad_id) == (batch["text_mask"] == 0)).all()
