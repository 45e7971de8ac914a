"""Who is found at which place: candidates, ranks and recalls of matrices of scores."""

import numpy as np

# The score of a pair that is not among the candidates, as in the public code.
UNSCORED = -100.0
DEPTHS = (1, 5, 10)
TITLES = {"i2t": "image to text", "t2i": "text to image"}  # texts for an image, images for a text
WAYS = tuple(TITLES)
MEAN = "r_mean"
RECALLS = (*(f"{way}_r{depth}" for way in WAYS for depth in DEPTHS), MEAN)
AT_ONCE = 2**24  # scores that are compared at a time


def candidates(sims_qc, k):
    """The k best candidates of each query: bool `[q, c]`; all of them if there are fewer."""
    k = min(k, sims_qc.shape[1])
    best = np.argpartition(-sims_qc, k - 1, axis=1)[:, :k]
    chosen = np.zeros(sims_qc.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def ranks(scores_qc, target_q, ties="higher"):
    """Place of each query's target under descending score, int `[q]`, 0 = best.

    A score that is not a number ranks last and everything ranks above it.

    Args:
      scores_qc: float. target_q: int, the column of each.
      ties: which index comes first among equal scores: the 'higher', as in the reversed ascending
        sort of ALBEF's public code, or the 'lower'.
    """
    behind_q = np.empty(len(scores_qc), np.int64)
    number_c = np.arange(scores_qc.shape[1])
    rows = max(1, AT_ONCE // scores_qc.shape[1])
    for first in range(0, len(scores_qc), rows):
        some = slice(first, first + rows)
        scores, target = scores_qc[some], target_q[some, None]
        own = np.take_along_axis(scores, target, axis=1)
        after = number_c < target if ties == "higher" else number_c > target
        behind = (scores < own) | ((scores == own) & after)
        behind_q[some] = np.count_nonzero(behind, axis=1)
    return len(number_c) - 1 - behind_q


def best_of_each(score_i2t, text_image, ties="higher"):
    """The text of each image that ranks first among its own, int `[n]`; `ties`: see `ranks`."""
    number_m = np.arange(len(text_image))
    own = score_i2t[text_image, number_m]
    own = np.where(np.isnan(own), -np.inf, own)
    order = np.lexsort((number_m if ties == "higher" else -number_m, own, text_image))
    last = np.append(np.diff(text_image[order]) != 0, True)
    return order[last]


def places(score_i2t, score_t2i, text_image, ties="higher"):
    """Places of the right answers: `i2t` int `[n]`, of each image's best text, and `t2i` `[m]`; see
    `recalls`."""
    if len(np.unique(text_image)) != len(score_i2t):
        raise ValueError("recall needs at least one text for every image")
    best = best_of_each(score_i2t, text_image, ties)
    return {"i2t": ranks(score_i2t, best, ties), "t2i": ranks(score_t2i, text_image, ties)}


def recalls(score_i2t, score_t2i, text_image, ties="higher"):
    """Recall at 1, 5 and 10 in both directions and their mean, in percent.

    Args:
      score_i2t: `[n, m]`, score of every text for each image.
      score_t2i: `[m, n]`, score of every image for each text.
      text_image: int `[m]`, the image of each text; an image with several texts counts as found
        at the place of its best one. ValueError if an image has none.
      ties: see `ranks`.

    Returns:
      dict of `RECALLS`: `i2t_r1`, `i2t_r5`, `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10`, `r_mean`.
    """
    found = places(score_i2t, score_t2i, text_image, ties)
    values = {f"{way}_r{depth}": 100 * np.count_nonzero(found[way] < depth) / len(found[way])
              for way in WAYS for depth in DEPTHS}
    return values | {MEAN: sum(values.values()) / len(values)}


def fold_recalls(score_i2t, text_image, folds, ties="higher"):
    """The mean of `recalls` over equal parts of the images, one after the other, with their texts.

    With 5 parts of the 5,000 images of COCO's test set this is what papers call COCO 1k.

    Args:
      score_i2t: `[n, m]`, the same both ways. text_image, ties: see `recalls`.
      folds: how many parts; what is left over is left out.
    """
    size, each = len(score_i2t) // folds, []
    for first in range(0, folds * size, size):
        texts = np.flatnonzero((first <= text_image) & (text_image < first + size))
        scores = score_i2t[first:first + size, texts]
        each.append(recalls(scores, scores.T, text_image[texts] - first, ties))
    return {name: float(np.mean([values[name] for values in each])) for name in RECALLS}
