"""ImageBERT (arXiv:2001.07966): which pairs match, what is masked, and losses of scores.

Axes: b rows of a group, p negatives, c = p + 1 candidates, of which the first is the right one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from albef_jax.objectives import matching
from albef_jax.objectives.masking import weighted_mean

# ---- pre-training: pairs and masking -------------------------------------------------------


class PairDraws(NamedTuple):
    """Whose text and whose image each row of a group has, int32 `[b]`; equal: they match."""

    text_b: jax.Array
    image_b: jax.Array


def same_image(image_id_b):
    """bool `[b, b]`: rows that must not be each other's negatives."""
    return image_id_b[:, None] == image_id_b


def draw_pairs(key, image_id_b, negatives=0.5):
    """Draws pairs inside a group: some rows get the image or the text of another row.

    Args:
      key: PRNG key. image_id_b: int32; a row never gets a part of one with the same image.
      negatives: share of rows that do not match: half of them have another image, half another
        text. Where it is no whole number of rows, it is so on average.

    Returns:
      `PairDraws`.
    """
    b, keys = len(image_id_b), jax.random.split(key, 3)
    own, same = jnp.arange(b), same_image(image_id_b)
    other = matching.sample_negatives(keys[0], jnp.zeros((b, b)), same)
    place = jax.random.permutation(keys[1], b)
    wanted = jnp.floor(negatives * b + jax.random.uniform(keys[2]))
    swapped = (place < wanted) & (matching.has_negative(same) > 0)
    takes_image = place % 2 == 0
    return PairDraws(text_b=jnp.where(swapped & ~takes_image, other, own),
                     image_b=jnp.where(swapped & takes_image, other, own))


def joint(key, words, regions, words_only_b=None):
    """Words and regions of a row are masked together: `MaskingDraws` and `FeatureDraws` as given.

    `key` and `words_only_b`: see `conditional`.
    """
    del key, words_only_b
    return words, regions


def conditional(key, words, regions, words_only_b=None):
    """Only words or only regions of a row are masked, as in UNITER (arXiv:1909.11740).

    Args:
      key: PRNG key. words: `masking.MaskingDraws`. regions: `masking.FeatureDraws`.
      words_only_b: bool, rows whose words are masked; None: drawn, half of them.

    Returns:
      Both draws; what is not to be masked is not chosen.
    """
    if words_only_b is None:
        words_only_b = jax.random.bernoulli(key, 0.5, words.chosen.shape[:1])
    return (words._replace(chosen=words.chosen & words_only_b[:, None]),
            regions._replace(chosen=regions.chosen & ~words_only_b[:, None]))


MASKINGS = {"joint": joint, "conditional": conditional}


# ---- pre-training: losses ------------------------------------------------------------------


def class_losses(logits, labels):
    """Cross-entropy `[...]` of logits `[..., k]`; labels below 0 give arbitrary values."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))


def feature_losses(predicted, features):
    """Mean squared difference over the channels, `[..., f] -> [...]` float32 (MRFR)."""
    return jnp.mean(jnp.square(predicted - features.astype(jnp.float32)), axis=-1)


def itm_loss(scores_b, matched_b):
    """Binary cross-entropy of match logits, a scalar (ITM)."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(scores_b, matched_b.astype(jnp.float32)))


# ---- fine-tuning: candidates and losses of their scores ------------------------------------


class CandidateDraws(NamedTuple):
    """Whose text and whose image each candidate has, int32 `[b, c]`; the first one matches."""

    text_bc: jax.Array
    image_bc: jax.Array


def draw_candidates(key, image_id_b, negatives):
    """Draws p negatives for every row: other images for its text, other texts for its image.

    The two alternate, and which comes first is drawn, so that with a single one both are as
    frequent. Partners of a row are all different.

    Args:
      key: PRNG key. image_id_b: int32. negatives: p, below b.

    Returns:
      `CandidateDraws`. A row that has fewer than p others with another image gets some with the
      same one; see `is_negative`.
    """
    b, keys = len(image_id_b), jax.random.split(key)
    rank = jnp.where(same_image(image_id_b), -jnp.inf, jax.random.gumbel(keys[0], (b, b)))
    _, other_bp = jax.lax.top_k(rank, negatives)
    takes_image_bp = (jnp.arange(negatives) + jax.random.bernoulli(keys[1], 0.5, (b, 1))) % 2 == 0
    own_b1 = jnp.arange(b)[:, None]

    def with_own(others):
        return jnp.concatenate([own_b1, others], axis=1)

    return CandidateDraws(text_bc=with_own(jnp.where(takes_image_bp, own_b1, other_bp)),
                          image_bc=with_own(jnp.where(takes_image_bp, other_bp, own_b1)))


def is_negative(image_id_b, draws):
    """bool `[b, c]`: candidates whose text and image are of different images."""
    return image_id_b[draws.text_bc] != image_id_b[draws.image_bc]


def binary_loss(scores_bc, negative_bc):
    """Cross-entropy of every pair by itself, mean over all.

    Args:
      scores_bc: match logits. negative_bc: bool, see `is_negative`; other candidates but the first
        do not count.
    """
    right = jnp.arange(scores_bc.shape[1]) == 0
    losses = optax.sigmoid_binary_cross_entropy(
        scores_bc, jnp.broadcast_to(right, scores_bc.shape).astype(jnp.float32))
    return weighted_mean(losses, (right | negative_bc).astype(jnp.float32))


def multiclass_loss(scores_bc, negative_bc):
    """Cross-entropy of the first among the candidates of a row; arguments: see `binary_loss`."""
    right = jnp.arange(scores_bc.shape[1]) == 0
    logits = jnp.where(right | negative_bc, scores_bc, -jnp.inf)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - scores_bc[:, 0])


def triplet_loss(scores_bc, negative_bc, margin=0.2):
    """Hinge of the first against the best negative of a row; arguments: see `binary_loss`."""
    hardest_b = jnp.max(jnp.where(negative_bc, scores_bc, -jnp.inf), axis=1)
    return jnp.mean(jnp.maximum(0.0, margin + hardest_b - scores_bc[:, 0]))
