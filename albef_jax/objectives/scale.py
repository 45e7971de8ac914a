"""SCALE (M5Product, arXiv 2109.04275): scores of modalities, contrast of pairs, masked features.

Axes: b examples, m or n modalities in the order of the scores (text, image, table, video, audio,
as far as there are), p features, l tokens, k property/value pairs of a table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ZERO = 1e-8  # a row of features that is not longer than this is zero: similar to nothing
NEVER = -1e30  # a logit of what is not to be compared; finite, so that no gradient is NaN


class Scores(NamedTuple):
    """How much the modalities of each example agree, float32 `[b, m, m]`.

    Attributes:
      similarity: S, cosines.
      harmonised: S' = S softmax(S), the softmax along the last axis.
      normalised: S'', rows of S' as unit vectors; S' itself without `row_norm`. Its upper
        triangle weights pairs of modalities, its diagonal the modalities.
    """

    similarity: jax.Array
    harmonised: jax.Array
    normalised: jax.Array


def unit_rows(x):
    """Unit vectors along the last axis, in float32; zero and without gradient where x is zero.

    Dividing a zero row by a floor instead would give it a gradient of the floor's inverse.
    """
    x = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    is_zero = squared <= ZERO**2
    return jnp.where(is_zero, 0.0, x * jax.lax.rsqrt(jnp.where(is_zero, 1.0, squared)))


def harmonised_scores(features_bmp, present_bm=None, row_norm=True):
    """The self-harmonised scores (SIMCL) of the modalities of each example.

    Args:
      features_bmp: one feature of each modality. Gradients flow through the scores.
      present_bm: bool; what an example lacks scores 0 and takes no part in the softmax. None: an
        example has everything, as in the released code.
      row_norm: rows of S' become unit vectors, as in the released code and not in the paper.

    Returns:
      `Scores`.
    """
    unit = unit_rows(features_bmp)
    similarity = jnp.einsum("bmp,bnp->bmn", unit, unit)
    shares = jax.nn.softmax(similarity, axis=-1)
    if present_bm is not None:
        both = present_bm[:, :, None] & present_bm[:, None, :]
        similarity = jnp.where(both, similarity, 0.0)
        shares = jax.nn.softmax(jnp.where(both, similarity, NEVER), axis=-1)
    harmonised = similarity * shares
    return Scores(similarity, harmonised, unit_rows(harmonised) if row_norm else harmonised)


def ordered_pairs(modalities):
    """Anchor and other modality of every ordered pair, int `[r]` each: r = m (m - 1)."""
    return np.nonzero(~np.eye(modalities, dtype=bool))


def pair_logits(features_bmp, temperature, weight_bmm=None):
    """What each feature is compared with, for every ordered pair of modalities.

    Args:
      features_bmp: one feature of each modality, of any length.
      temperature: of cosines.
      weight_bmm: scores; those in the upper triangle multiply the logits of an example's anchors
        in that pair of modalities. None: nothing does.

    Returns:
      float32 `[r, b, 2b]`: to the other modality of all examples, the positive on the diagonal,
      then to the anchor's own modality, itself included.
    """
    anchor, other = ordered_pairs(features_bmp.shape[1])
    unit = unit_rows(features_bmp)
    logits_mnbc = jnp.einsum("bmp,cnp->mnbc", unit, unit) / temperature
    logits_rbd = jnp.concatenate(
        [logits_mnbc[anchor, other], logits_mnbc[anchor, anchor]], axis=-1)
    return logits_rbd if weight_bmm is None else logits_rbd * of_pairs(weight_bmm)[..., None]


def of_pairs(scores_bmm):
    """The score of each ordered pair, the same both ways: that of the upper triangle, `[r, b]`."""
    anchor, other = ordered_pairs(scores_bmm.shape[-1])
    return scores_bmm[:, np.minimum(anchor, other), np.maximum(anchor, other)].T


def pair_losses(features_bmp, scores_bmm, temperature, mode="logit", present_bm=None):
    """NT-Xent between the modalities of the same product, for every pair of modalities.

    Each of the 2b features of a pair is an anchor: its positive is the other feature of the same
    example, its negatives are both features of all other examples.

    Args:
      features_bmp, temperature: see `pair_logits`. scores_bmm: `Scores.normalised`.
      mode: what the scores do: 'logit' multiplies the anchor's logits, 'loss' its loss, 'off'
        nothing.
      present_bm: bool; an example that lacks one of a pair is neither anchor nor negative there.

    Returns:
      float32 `[m (m - 1) / 2]`, the mean over the anchors of each pair (0 where there is none), in
      the order (0, 1), (0, 2) ... (1, 2) ...
    """
    b, m, _ = features_bmp.shape
    anchor, other = ordered_pairs(m)
    logits_rbd = pair_logits(features_bmp, temperature, scores_bmm if mode == "logit" else None)
    compared = jnp.concatenate([jnp.ones((b, b), bool), ~jnp.eye(b, dtype=bool)], axis=-1)
    valid_rb = jnp.ones((len(anchor), b), bool)
    if present_bm is not None:
        valid_rb = (present_bm[:, anchor] & present_bm[:, other]).T
        compared = compared & jnp.tile(valid_rb, 2)[:, None]
    positive_rb = jnp.diagonal(logits_rbd, axis1=1, axis2=2)
    loss_rb = jax.nn.logsumexp(jnp.where(compared, logits_rbd, NEVER), axis=-1) - positive_rb
    if mode == "loss":
        loss_rb = loss_rb * of_pairs(scores_bmm)
    total_mm, count_mm = (
        jnp.zeros((m, m)).at[np.minimum(anchor, other), np.maximum(anchor, other)].add(x)
        for x in (jnp.sum(jnp.where(valid_rb, loss_rb, 0.0), axis=-1), jnp.sum(valid_rb, axis=-1)))
    return (total_mm / jnp.maximum(count_mm, 1.0))[np.triu_indices(m, 1)]


# ---- masked tables, and features that are predicted -----------------------------------------


def draw_kept(key, present_bm, share):
    """Which modalities of an example are seen, bool `[b, m]`: of those it has, one at least.

    Args:
      present_bm: bool, what an example has. share: of them that are withheld.
    """
    drawn_bm = jnp.where(present_bm, jax.random.uniform(key, present_bm.shape), -1.0)
    last_bm = drawn_bm == jnp.max(drawn_bm, axis=1, keepdims=True)
    return present_bm & ((drawn_bm >= share) | last_bm)


class EntityDraws(NamedTuple):
    """The random choices of masking tables; every field is bool `[b, k]`."""

    chosen: jax.Array  # mask a half of this pair
    property: jax.Array  # of the chosen: the property, not the value


def draw_entities(key, shape, rate=0.15):
    """Which of `(b, k)` property/value pairs have a half masked, and which half."""
    keys = jax.random.split(key, 2)
    return EntityDraws(jax.random.bernoulli(keys[0], rate, shape),
                       jax.random.bernoulli(keys[1], 0.5, shape))


def mask_entities(ids_bl, entity_bl, draws, mask_id):
    """Tables with every word of the drawn properties or values as [MASK].

    Args:
      ids_bl: int32. draws: `EntityDraws`. mask_id: of [MASK].
      entity_bl: int32; 2k + 1 where a word belongs to the property of pair k, 2k + 2 to its value,
        0 elsewhere.

    Returns:
      masked ids `[b, l]`, and bool `[b, l]` that marks the words to predict.
    """
    pair_bl = jnp.clip((entity_bl - 1) // 2, 0, draws.chosen.shape[1] - 1)
    chosen, takes_property = (jnp.take_along_axis(x, pair_bl, axis=1)
                              for x in (draws.chosen, draws.property))
    predicted = (entity_bl > 0) & chosen & ((entity_bl % 2 == 1) == takes_property)
    return jnp.where(predicted, mask_id, ids_bl), predicted


def squared_error(predicted_bld, target_bld, selected_bl, weight_b=None):
    """Mean squared error of the selected features, scalar float32; 0 where there is none.

    Args:
      predicted_bld, target_bld: float. selected_bl: bool. weight_b: of the errors of each example.
    """
    error_bl = jnp.sum(jnp.square(predicted_bld - target_bld.astype(jnp.float32)), axis=-1)
    if weight_b is not None:
        error_bl = error_bl * weight_b[:, None]
    count = jnp.sum(selected_bl) * predicted_bld.shape[-1]
    return jnp.sum(jnp.where(selected_bl, error_bl, 0.0)) / jnp.maximum(count, 1)
