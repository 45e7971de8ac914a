"""Who is found at which place: candidates, ranks and recalls of matrices of scores."""

import numpy as np

# The score of a pair that is not among the candidates, as in the public code.
UNSCORED = -100.0
DEPTHS = (1, 5, 10)
WAYS = ("i2t", "t2i")  # texts for an image, images for a text
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
        at the place of its best one. ValueError if an image has none.

    Returns:
      dict of `RECALLS`: `i2t_r1`, `i2t_r5`, `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10`, `r_mean`.
    """
    if len(np.unique(text_image)) != len(score_i2t):
        raise ValueError("recall needs at least one text for every image")
    places = {"i2t": ranks(score_i2t, best_of_each(score_i2t, text_image)),
              "t2i": ranks(score_t2i, text_image)}
    values = {f"{way}_r{depth}": 100 * np.count_nonzero(places[way] < depth) / len(places[way])
              for way in WAYS for depth in DEPTHS}
    return values | {MEAN: sum(values.values()) / len(values)}
