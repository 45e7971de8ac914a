"""The optimizer of a config: AdamW with its schedule, clipping, rates by parameter and decay."""

import re

import jax
import jax.numpy as jnp
import optax

DEFAULTS = dict(
    peak_lr=1e-4, min_lr=1e-5, warmup_lr=1e-5, warmup_steps=2000,
    warmup_share=0.0,  # of all steps; if it is not 0 it counts and warmup_steps does not
    schedule="cosine",  # of SCHEDULES
    steps_per_epoch=0,  # of 'albef_steps'; 0: from the data
    lr_factors=(),  # pairs of a pattern of parameter paths, such as 'text_encoder/', and a factor
    weight_decay=0.02,
    no_decay=("(^|/)(bias|scale)$",),  # patterns of paths: biases and the scales of norms
    b1=0.9, b2=0.999, eps=1e-8,
    bias_correction=True,  # of Adam's moments; False as in BertAdam
    clip="none",  # gradients: 'global' norm, or that of each tensor, 'per_tensor'
    clip_norm=1.0,
    # Pairs of a pattern of paths and a number: for 'per_tensor' these are so many tensors, joined
    # along their last axis, as queries, keys and values are here and not in other code.
    clip_parts=())


def warm_up(rest):
    """A schedule that rises linearly to `peak_lr`, then goes on as `rest(config, steps left)`."""
    def make(config, total_steps):
        warmup = config.warmup_share * total_steps or config.warmup_steps
        left = max(total_steps - warmup, 1)
        rise = optax.linear_schedule(config.warmup_lr, config.peak_lr, warmup)
        return optax.join_schedules([rise, rest(config, left)], [warmup])

    return make


def albef_steps(config, total_steps):
    """The public code's schedule: warm-up by the hundred, one cosine value per epoch.

    Iterations 0..100 run at `warmup_lr`, 101..200 at the next of `warmup_steps / 100` equal
    stairs up to `peak_lr`, the rest of epoch 0 at `peak_lr`; epoch e is constant at the cosine
    of e / epochs.
    """
    epochs = max(total_steps // config.steps_per_epoch, 1)
    stairs = max(config.warmup_steps // 100, 1)
    peak, least, first = config.peak_lr, config.min_lr, config.warmup_lr

    def schedule(step):
        stair = jnp.minimum(jnp.maximum(step - 1, 0) // 100, stairs)
        warm = first + stair * (peak - first) / stairs
        epoch = step // config.steps_per_epoch
        cosine = least + (peak - least) * 0.5 * (1.0 + jnp.cos(jnp.pi * epoch / epochs))
        return jnp.where(epoch == 0, warm, cosine)

    return schedule


SCHEDULES = {
    "cosine": warm_up(lambda c, left: optax.cosine_decay_schedule(
        c.peak_lr, left, c.min_lr / c.peak_lr if c.peak_lr else 0.0)),
    "linear": warm_up(lambda c, left: optax.linear_schedule(c.peak_lr, c.min_lr, left)),
    "constant": warm_up(lambda c, left: optax.constant_schedule(c.peak_lr)),
    "albef_steps": albef_steps,
}


def make_schedule(config, total_steps):
    """Learning rate of an `optimizer` block as a function of the number of finished steps."""
    return SCHEDULES[config.schedule](config, total_steps)


def make_optimizer(config, learning_rate, trained=None, frozen=None):
    """Adam with decoupled weight decay, an optax transformation without parts that do nothing.

    Args:
      config: the `optimizer` block. learning_rate: from `make_schedule`.
      trained: tree of bool, which parameters the loss sends gradients to; None: all. The others
        stay as they are, as torch leaves a parameter without gradient: their moments stay 0, and
        they do not decay.
      frozen: tree of bool, which parameters are never updated; None: none.
    """
    def decays(params):
        spared = matches(params, config.no_decay)
        reached = trained or jax.tree.map(lambda _: True, params)
        return jax.tree.map(lambda x, y: y and not x, spared, reached)

    adam = optax.scale_by_adam if config.bias_correction else scale_by_uncorrected_adam
    chain = [adam(b1=config.b1, b2=config.b2, eps=config.eps),
             optax.add_decayed_weights(config.weight_decay, decays),
             optax.scale_by_learning_rate(learning_rate)]
    if clip := CLIPPING[config.clip]:
        chain.insert(0, clip(config))
    if config.lr_factors:
        chain.append(scale_matching(config.lr_factors))
    if frozen and any(jax.tree.leaves(frozen)):
        chain.append(optax.masked(optax.set_to_zero(), frozen))
    return optax.chain(*chain)


def path_of(path):
    """A leaf's path as a string, keys joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(params, patterns):
    """Tree of bool: whether a parameter's path has a match of one of the patterns."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, path_of(path)) for pattern in patterns), params)


def scale_matching(factors):
    """Updates times the product of the factors whose patterns their paths match."""
    def update(updates, params):
        for pattern, factor in factors:
            chosen = matches(updates, (pattern,))
            updates = jax.tree.map(lambda u, yes, f=factor: f * u if yes else u, updates, chosen)
        return updates

    return optax.stateless(update)


def clip_each(config):
    """Every tensor scaled to at most `clip_norm` by itself, as torch's `clip_grad_norm_` does."""
    def clipped(path, grad):
        parts = [number for pattern, number in config.clip_parts
                 if re.search(pattern, path_of(path))] or [1]
        joined = grad.reshape(-1, parts[0], grad.shape[-1] // parts[0] if grad.ndim else 1)
        norm = jnp.sqrt(jnp.sum(jnp.square(joined), axis=(0, 2), keepdims=True))
        return (joined * jnp.minimum(1.0, config.clip_norm / (norm + 1e-6))).reshape(grad.shape)

    return optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(clipped, grads))


def scale_by_uncorrected_adam(b1, b2, eps):
    """`optax.scale_by_adam` whose moments, which start at 0, are used as they are (BertAdam)."""
    def update(grads, state, params=None):
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


CLIPPING = {"none": None, "global": lambda c: optax.clip_by_global_norm(c.clip_norm),
            "per_tensor": clip_each}
CHOICES = {"optimizer.schedule": (*SCHEDULES,), "optimizer.clip": (*CLIPPING,)}
