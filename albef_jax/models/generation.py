"""Writing a text word by word."""

import jax
import jax.numpy as jnp


def beam_search(step, cache, *, start_id, end_id, pad_id, length, beams):
    """The likeliest texts that a few candidates, extended in parallel, come upon.

    The score of a text is the sum of the log probabilities of its words, `end_id` included;
    nothing is divided by its length. One beam is greedy search.

    Args:
      step: `step(cache, ids_k, position) -> cache, log_probs_kv`: the words at `position` of k
        texts, int32 `[k]`, and what comes after them, float32 `[k, v]`.
      cache: what `step` remembers, a tree of arrays `[k, ...]`.
      start_id, end_id, pad_id: the first word, the last word, and what follows it.
      length: words of a text at most, `start_id` and `end_id` included; a longer one is cut.
      beams: number of texts k.

    Returns:
      int32 `[k, length]` and float32 `[k]`: texts and their scores, best first.
    """
    def unfinished(state):
        position, _, _, ended_k, _ = state
        return (position < length - 1) & ~jnp.all(ended_k)

    def extend(state):
        position, ids_kl, scores_k, ended_k, cache = state
        cache, words_kv = step(cache, ids_kl[:, position], position)
        vocab = words_kv.shape[-1]
        stays_v = jnp.where(jnp.arange(vocab) == pad_id, 0.0, -jnp.inf)
        words_kv = jnp.where(ended_k[:, None], stays_v, words_kv)
        scores_k, best_k = jax.lax.top_k((scores_k[:, None] + words_kv).reshape(-1), beams)
        parent_k, word_k = jnp.divmod(best_k, vocab)
        ids_kl = ids_kl[parent_k].at[:, position + 1].set(word_k)
        cache = jax.tree.map(lambda x: x[parent_k], cache)
        return position + 1, ids_kl, scores_k, ended_k[parent_k] | (word_k == end_id), cache

    ids_kl = jnp.full((beams, length), pad_id, jnp.int32).at[:, 0].set(start_id)
    # All texts begin alike: only the first may have successors at first.
    scores_k = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    state = (jnp.int32(0), ids_kl, scores_k, jnp.zeros(beams, bool), cache)
    _, ids_kl, scores_k, _, _ = jax.lax.while_loop(unfinished, extend, state)
    return ids_kl, scores_k
