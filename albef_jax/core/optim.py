"""AdamW, its decay mask and the learning-rate schedules of ALBEF."""

import jax
import jax.numpy as jnp
import optax

from albef_jax.errors import UserError


def decay_mask(params):
    """True for the leaves that decay: all but biases and LayerNorm scales.

    The temperature, [CLS], position and word embeddings do decay, as in the public code.
    """
    def decays(path, _):
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def cosine_schedule(step, *, peak_lr, min_lr, warmup_lr, warmup_steps, total_steps):
    """Linear warm-up in steps, then half a cosine down to `min_lr` at `total_steps`."""
    warm = warmup_lr + (peak_lr - warmup_lr) * step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return jnp.where(step < warmup_steps, warm, min_lr + (peak_lr - min_lr) * cosine)


def albef_steps_schedule(step, *, peak_lr, min_lr, warmup_lr, warmup_steps, steps_per_epoch,
                         total_steps):
    """The public code's schedule: warm-up by the hundred, one cosine value per epoch.

    Iterations 0..100 run at `warmup_lr`, 101..200 at the next of `warmup_steps / 100` equal
    stairs up to `peak_lr`, the rest of epoch 0 at `peak_lr`; epoch e is constant at the cosine
    of e / epochs.
    """
    epochs = max(total_steps // steps_per_epoch, 1)
    stairs = max(warmup_steps // 100, 1)
    stair = jnp.minimum(jnp.maximum(step - 1, 0) // 100, stairs)
    warm = warmup_lr + stair * (peak_lr - warmup_lr) / stairs
    epoch = step // steps_per_epoch
    cosine = min_lr + (peak_lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * epoch / epochs))
    return jnp.where(epoch == 0, warm, cosine)


def make_schedule(config, total_steps):
    """Learning rate as a function of the number of finished steps.

    Args:
      config: the `optimizer` block. total_steps: of the whole run.

    Raises:
      UserError: unknown schedule name.
    """
    common = dict(peak_lr=config.peak_lr, min_lr=config.min_lr, warmup_lr=config.warmup_lr,
                  warmup_steps=config.warmup_steps, total_steps=total_steps)
    if config.schedule == "cosine":
        return lambda step: cosine_schedule(step, **common)
    if config.schedule == "albef_steps":
        return lambda step: albef_steps_schedule(
            step, steps_per_epoch=config.steps_per_epoch, **common)
    raise UserError(f"optimizer.schedule is {config.schedule!r}; choose 'cosine' or "
                    "'albef_steps'.")


def make_optimizer(config, learning_rate):
    """AdamW with decoupled decay and no clipping, as in the public code.

    Args:
      config: the `optimizer` block: weight_decay, b1, b2, eps.
      learning_rate: a function of the number of finished steps, from `make_schedule`.

    Returns:
      An optax transformation.
    """
    return optax.adamw(learning_rate, b1=config.b1, b2=config.b2, eps=config.eps,
                       weight_decay=config.weight_decay, mask=decay_mask)
