"""Zero-shot image-text retrieval: ITC ranking, then ITM re-ranking of the best candidates.

ALBEF section 4 ("Image-Text Retrieval"): similarities of the unimodal features choose k
candidates per query; only these are scored by the multimodal encoder.
"""

import contextlib
import time

import jax
import numpy as np

from albef_jax.evaluators.held_out import HeldOut

# The score of a pair that is not among the candidates, as in the public code.
UNSCORED = -100.0
DEPTHS = (1, 5, 10)
# Texts that share the keys and values of an image in one block of pairs.
TEXTS_PER_IMAGE = 16
AT_ONCE = 2**24  # scores that are compared at a time
SCORES = "scores of candidates"  # the phase that is most of an evaluation


class RetrievalEvaluator:
    """Recall at 1, 5 and 10 both ways, in percent.

    Yields `itc_i2t_r1`, ... `itc_r_mean` (ranking by similarity), then `i2t_r1`, `i2t_r5`,
    `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10` and `r_mean` (the best k re-ranked by the match
    logit); before these, for every k of `ks`, `i2t_r1@k`, ... `r_mean@k`. A pair is scored once,
    however many depths and directions it is chosen for.

    Attributes:
      seconds: what the last run took, by phase. num_pairs: that it scored.
    """

    fields = HeldOut.fields | {"k": (128, 1), "ks": ((), 1)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        del seed  # Nothing is drawn.
        self._k, self._ks = settings["k"], settings["ks"]
        self.held_out = data = HeldOut(source, settings, data_config, tokenizer)
        self.description = (f"{data.num_images} images, {len(data.text_ids)} texts, "
                            f"the best {self._k} re-ranked")
        self.seconds, self.num_pairs = {}, 0

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        data, self.seconds = self.held_out, {}
        data.bind(predict_fns, mesh, match_logits(predict_fns["match"]))
        with self._timed("encode images"):
            image_embeds, image_feats = data.encode_images(params)
        with self._timed("encode texts"):
            text_embeds, text_feats = data.encode_texts(params, data.text_ids, data.text_mask)
        with self._timed("similarities and candidates"):
            sims = image_feats @ text_feats.T
            chosen = {k: (candidates(sims, k), candidates(sims.T, k).T)
                      for k in (*self._ks, self._k)}
            wanted = np.logical_or.reduce([way for both in chosen.values() for way in both])
            self.num_pairs = int(wanted.sum())
        with self._timed("recalls by similarity"):
            values = recalls(sims, sims.T, data.text_image)
        for name, value in values.items():
            yield f"itc_{name}", value

        with self._timed(SCORES):
            match = match_scores(data, params, image_embeds, text_embeds, wanted,
                                 per_image=min(TEXTS_PER_IMAGE, max(chosen), len(data.text_ids)))
        for k in self._ks:
            for name, value in self._recalls(match, *chosen[k]).items():
                yield f"{name}@{k}", value
        yield from self._recalls(match, *chosen[self._k]).items()

    def _recalls(self, match, chosen_i2t, chosen_t2i):
        with self._timed("recalls of candidates"):
            return recalls(np.where(chosen_i2t, match, UNSCORED),
                           np.where(chosen_t2i, match, UNSCORED).T, self.held_out.text_image)

    @contextlib.contextmanager
    def _timed(self, phase):
        begin = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin


def match_logits(match):
    """The pair function of blocks: `[g, n, d]` images and `[g, s, l, d]` texts -> `[g, s, 2]`."""
    return jax.vmap(match, in_axes=(None, None, 1, 1), out_axes=1)


def match_scores(data, params, image_embeds, text_embeds, chosen_it, per_image=1):
    """The match logits of chosen pairs; the others are not computed.

    Args:
      data: a `HeldOut` that is bound to `match_logits`. params: of the model.
      image_embeds: `[n, t, d]`. text_embeds: `[m, l, d]`. Both from `data`.
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


def ranks(scores_qc, target_q):
    """Place of each query's target under descending score, int `[q]`, 0 = best.

    Among equal scores the higher index comes first, as in the public code's reversed ascending
    sort. A score that is not a number ranks last and everything ranks above it.
    """
    behind_q = np.empty(len(scores_qc), np.int64)
    number_c = np.arange(scores_qc.shape[1])
    rows = max(1, AT_ONCE // scores_qc.shape[1])
    for first in range(0, len(scores_qc), rows):
        some = slice(first, first + rows)
        scores, target = scores_qc[some], target_q[some, None]
        own = np.take_along_axis(scores, target, axis=1)
        behind = (scores < own) | ((scores == own) & (number_c < target))
        behind_q[some] = np.count_nonzero(behind, axis=1)
    return len(number_c) - 1 - behind_q


def best_of_each(score_i2t, text_image):
    """The text of each image that ranks first among its own, int `[n]`."""
    own = score_i2t[text_image, np.arange(len(text_image))]
    own = np.where(np.isnan(own), -np.inf, own)
    order = np.lexsort((np.arange(len(own)), own, text_image))
    last = np.append(np.diff(text_image[order]) != 0, True)
    return order[last]


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
    if len(np.unique(text_image)) != len(score_i2t):
        raise ValueError("recall needs at least one text for every image")
    places = {"i2t": ranks(score_i2t, best_of_each(score_i2t, text_image)),
              "t2i": ranks(score_t2i, text_image)}
    values = {f"{way}_r{depth}": float(100 * np.count_nonzero(places[way] < depth)
                                       / len(places[way]))
              for way in places for depth in DEPTHS}
    return values | {"r_mean": sum(values.values()) / len(values)}
