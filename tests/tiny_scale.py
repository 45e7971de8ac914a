"""As tests/tiny.py, of SCALE: few narrow layers; noise is its only data."""

from albef_jax.config import default_config


def get_config(task=None):
    """float32, dropout on, two groups of 8 products; `task`: 'scale_pretrain' or another of it."""
    config = default_config(task or "scale_pretrain")
    config.batch_size, config.group_size = 16, 8
    config.steps, config.log_every = 60, 1
    config.model.update(
        width=16, layers=1, text_heads=2, text_mlp_width=32, visual_heads=2, visual_mlp_width=24,
        jct_layers=1, jct_heads=4, jct_mlp_width=32, embed_dim=12, max_positions=10, max_video=4,
        max_audio=6, max_jct=40, dtype="float32", init_std=0.1, vocab_size=100, cls_id=2,
        mask_id=4)
    if "classes" in config.model:
        config.model.classes = 5
    config.data.update(text_length=6, table_length=8, regions_length=4, regions_width=10,
                       video_length=3, video_width=6, audio_length=5, audio_width=7, workers=2)
    config.optimizer.update(peak_lr=4e-3, warmup_lr=1e-3)
    config.checkpoint.update(every=20)
    return config
