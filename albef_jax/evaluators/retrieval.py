"""Zero-shot image-text retrieval: ITC ranking, then ITM re-ranking of the best candidates.

ALBEF section 4 ("Image-Text Retrieval"): similarities of the unimodal features choose k
candidates per query; only these are scored by the multimodal encoder.
"""

import jax
import numpy as np

from albef_jax.evaluators.held_out import HeldOut

# The score of a pair that is not among the candidates, as in the public code.
UNSCORED = -100.0
DEPTHS = (1, 5, 10)
# Texts that share the keys and values of an image in one block of pairs.
TEXTS_PER_IMAGE = 16


class RetrievalEvaluator:
    """Recall at 1, 5 and 10 both ways, in percent.

    Yields `itc_i2t_r1`, ... `itc_r_mean` (ranking by similarity), then `i2t_r1`, `i2t_r5`,
    `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10` and `r_mean` (re-ranked by the match logit).
    """

    fields = HeldOut.fields | {"k": (128, 1)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        del seed  # Nothing is drawn.
        self._k = settings["k"]
        self._held_out = data = HeldOut(source, settings, data_config, tokenizer)
        self.description = (f"{data.num_images} images, {len(data.text_ids)} texts, "
                            f"the best {self._k} re-ranked")

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        data = self._held_out
        data.bind(predict_fns, mesh, match_logits(predict_fns["match"]))
        image_embeds, image_feats = data.encode_images(params)
        text_embeds, text_feats = data.encode_texts(params, data.text_ids, data.text_mask)
        sims = image_feats @ text_feats.T
        for name, value in recalls(sims, sims.T, data.text_image).items():
            yield f"itc_{name}", value

        chosen_i2t, chosen_t2i = candidates(sims, self._k), candidates(sims.T, self._k).T
        # A pair chosen in both directions is scored once.
        match = match_scores(data, params, image_embeds, text_embeds, chosen_i2t | chosen_t2i,
                             per_image=min(TEXTS_PER_IMAGE, self._k, len(text_embeds)))
        score_i2t = np.where(chosen_i2t, match, UNSCORED)
        score_t2i = np.where(chosen_t2i, match, UNSCORED).T
        yield from recalls(score_i2t, score_t2i, data.text_image).items()


def match_logits(match):
    """The pair function of blocks: `[g, n, d]` images and `[g, s, l, d]` texts -> `[g, s, 2]`."""
    return jax.vmap(match, in_axes=(None, None, 1, 1), out_axes=1)


def match_scores(data, params, image_embeds, text_embeds, chosen_it, per_image=1):
    """The match logits of chosen pairs; the others are not computed.

    Args:
      data: a `HeldOut` that is bound to `match_logits`. params: of the model.
      image_embeds: `[n, t, d]`. text_embeds: `[m, l, d]`.
      chosen_it: bool `[n, m]`, which pairs. per_image: texts in a block (see `score_pairs`).

    Returns:
      float32 `[n, m]`, `UNSCORED` where not chosen.
    """
    image, text = np.nonzero(chosen_it)
    texts = dict(text_embeds=text_embeds, text_mask=data.text_mask)
    logits = data.score_pairs(params, image_embeds, image, text, texts, per_image=per_image)
    match = np.full(chosen_it.shape, UNSCORED, np.float32)
    match[image, text] = logits[:, 1]
    return match


def candidates(sims_qc, k):
    """The k best candidates of each query: bool `[q, c]`; all of them if there are fewer."""
    k = min(k, sims_qc.shape[1])
    best = np.argpartition(-sims_qc, k - 1, axis=1)[:, :k]
    chosen = np.zeros(sims_qc.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def rank(scores_c, target):
    """Place of the target under descending score, 0 = best.

    Among equal scores the higher index comes first, as in the public code's reversed ascending
    sort. A score that is not a number ranks last and everything ranks above it.
    """
    worse = scores_c < scores_c[target]
    tied_behind = scores_c[:target] == scores_c[target]
    return len(scores_c) - 1 - np.count_nonzero(worse) - np.count_nonzero(tied_behind)


def recalls(score_i2t, score_t2i, text_image):
    """Recall at 1, 5 and 10 in both directions and their mean, in percent.

    Args:
      score_i2t: `[n, m]`, score of every text for each image.
      score_t2i: `[m, n]`, score of every image for each text.
      text_image: int `[m]`, the image of each text; an image with several texts counts as found
        at the place of its best one.

    Returns:
      dict: `i2t_r1`, `i2t_r5`, `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10`, `r_mean`.

    Raises:
      ValueError: an image has no text.
    """
    n = len(score_i2t)
    if len(np.unique(text_image)) != n:
        raise ValueError("recall needs at least one text for every image")
    image_ranks = np.full(n, len(text_image))
    for text, image in enumerate(text_image):
        image_ranks[image] = min(image_ranks[image], rank(score_i2t[image], text))
    text_ranks = np.array([rank(score_t2i[t], image) for t, image in enumerate(text_image)])
    values = {f"{way}_r{depth}": float(100 * np.count_nonzero(ranks < depth) / len(ranks))
              for way, ranks in (("i2t", image_ranks), ("t2i", text_ranks)) for depth in DEPTHS}
    return values | {"r_mean": sum(values.values()) / len(values)}
