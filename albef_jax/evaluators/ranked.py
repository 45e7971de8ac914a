"""Ranked lists, counted as M5Product's public metric does."""

import numpy as np

from albef_jax.evaluators.recall import DEPTHS

LISTED = max(DEPTHS)  # hits that are looked at
AT_ONCE = 2**24  # scores that are sorted at a time
METRICS = tuple(f"{metric}{depth}" for metric in ("map", "prec") for depth in DEPTHS)


def rankings(queries_qd, gallery_gd, own_q=None, listed=LISTED):
    """The gallery rows of each query by descending dot product; of equal ones the lower row first.

    Args:
      queries_qd: `[q, d]`. gallery_gd: `[g, d]`.
      own_q: int `[q]`, the gallery row of the query itself, which is left out; -1: it is not there.
        None: of none.
      listed: how many rows.

    Returns:
      int `[q, n]`, n at most `listed`; -1 behind lists that are shorter than others.
    """
    own_q = np.full(len(queries_qd), -1) if own_q is None else own_q
    count, rows = min(listed + 1, len(gallery_gd)), []
    step = max(1, AT_ONCE // len(gallery_gd))
    for first in range(0, len(queries_qd), step):
        scores = queries_qd[first:first + step] @ gallery_gd.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        others = best != own_q[first:first + step, None]
        order = np.argsort(~others, axis=1, kind="stable")  # the own row goes behind all others
        rows.append(np.where(np.take_along_axis(others, order, axis=1),
                             np.take_along_axis(best, order, axis=1), -1)[:, :listed])
    return np.concatenate(rows)


def ranked_scores(hits_qn, listed_q, positives_q):
    """Precision and average precision of each query at the depths 1, 5 and 10.

    At a depth N only the first K = min(N, positives, list) places count, and the average precision
    is the mean of the precisions at the hits among them, 0 without a hit.

    Args:
      hits_qn: bool `[q, n]`, whether what is at a place is relevant. listed_q: int `[q]`, places.
      positives_q: int `[q]`, relevant things that there are, the query itself among them.

    Returns:
      Name of `METRICS` -> float `[q]`, shares; `K1`, `K5`, `K10` -> int `[q]`.
    """
    place = np.arange(hits_qn.shape[1])
    values = {}
    for depth in DEPTHS:
        k_q = np.minimum(depth, np.minimum(positives_q, listed_q))
        hits = hits_qn & (place < k_q[:, None])
        found = hits.sum(axis=1)
        precision = np.cumsum(hits, axis=1) / (place + 1)
        values[f"map{depth}"] = (precision * hits).sum(axis=1) / np.maximum(found, 1)
        values[f"prec{depth}"] = found / np.maximum(k_q, 1)
        values[f"K{depth}"] = k_q
    return values


def retrieval_scores(ranked_qn, query_labels, gallery_labels, positives=None):
    """The means of `ranked_scores` in percent.

    Args:
      ranked_qn: of `rankings`. query_labels, gallery_labels: arrays `[q]`, `[g]`; equal: relevant.
      positives: label -> how many there are; None: in the gallery.

    Returns:
      dict of `METRICS`.
    """
    gallery_labels, query_labels = np.asarray(gallery_labels), np.asarray(query_labels)
    if positives is None:
        positives = dict(zip(*np.unique(gallery_labels, return_counts=True)))
    real = ranked_qn >= 0
    hits = (gallery_labels[ranked_qn] == query_labels[:, None]) & real
    counts = np.array([positives.get(label, 0) for label in query_labels], int)
    scores = ranked_scores(hits, real.sum(axis=1), counts)
    return {name: 100 * float(np.mean(scores[name])) for name in METRICS}
