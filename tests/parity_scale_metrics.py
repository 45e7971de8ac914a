"""Ranked lists and their scores as the released retrieval and evaluation scripts of SCALE give."""

import json

import numpy as np

from albef_jax.evaluators.ranked import LISTED, ranked_scores, rankings, retrieval_scores
from parity_report import EXACT, Limit

COUNTED = Limit("counted", 1e-12, "own")


def run_metrics(folder, meta, report):
    """Compares one case; `report` is a `parity_report.Report`."""
    del meta
    recorded = json.loads((folder / "metrics.json").read_text())
    gallery, queries = recorded["gallery_ids"], recorded["query_ids"]
    places = {name: place for place, name in enumerate(gallery)}
    own = np.array([places.get(name, -1) for name in queries])
    with np.load(folder / "features.npz") as features:
        ranked = rankings(features["query"], features["gallery"], own)
        short = shortened(rankings(features["query"], features["gallery"], listed=10), own)
        report.check("scores", features["query"] @ features["gallery"].T, features["scores"],
                     Limit("score", 1e-6, "own"))
    ours = {"retrieved_top11": ranked, "retrieved_top10": short}
    for name, result in recorded["results"].items():
        asked, lists = result.get("queries", list(result["lists"])), result["lists"]
        if name in ours:
            named = [[gallery[row] for row in rows if row >= 0] for rows in ours[name]]
            report.equal(f"{name} lists", named, [lists[query][:LISTED] for query in queries])
        check_scores(name, [lists[query] for query in asked], asked, recorded["labels"], result,
                     report)


def shortened(ranked, own):
    """Lists of ten from which the query was taken after the cut, as the release does it."""
    rows = [[row for row in rows if row != mine] for rows, mine in zip(ranked, own)]
    return np.array([row + [-1] * (ranked.shape[1] - len(row)) for row in rows])


def check_scores(name, lists, asked, labels, result, report):
    """The scores of recorded lists, of each query and on average."""
    ids = list(labels)
    rows = {one: row for row, one in enumerate(ids)}
    longest = max(map(len, lists))
    ranked = np.array([[rows[one] for one in some] + [-1] * (longest - len(some))
                       for some in lists])
    of = np.array([labels[one] for one in ids])
    wanted = np.array([labels[one] for one in asked])
    real = ranked >= 0
    each = ranked_scores((of[ranked] == wanted[:, None]) & real, real.sum(axis=1),
                         np.array([np.sum(of == label) for label in wanted]))
    means = retrieval_scores(ranked, wanted, of)
    for depth in (1, 5, 10):
        recorded, mean = result["per_query"][f"top{depth}"], result["metrics"][f"top{depth}"]
        report.check(f"{name} K@{depth}", each[f"K{depth}"], recorded["K"], EXACT)
        for metric, theirs in (("map", "AP"), ("prec", "Prec")):
            report.check(f"{name} {theirs}@{depth}", each[f"{metric}{depth}"], recorded[theirs],
                         COUNTED)
        for metric, theirs in (("map", "mAP"), ("prec", "Prec")):
            report.check(f"{name} mean {theirs}@{depth}", means[f"{metric}{depth}"], mean[theirs],
                         COUNTED)
