"""SCALE on real products by subset of what is known, beside simpler ways: trains, writes a table.

    python docs/fashion_experiment.py FOLDER RUNS [--seeds 3] [--jobs 2] [--write docs/results.md]

FOLDER holds the data and their features, see configs/fashion.py; RUNS gets a work directory for each
run, `LETTERS_SEED` and `LETTERS_SEED_classes`. Models that know titles or images alone are trained
likewise; TF-IDF needs no training but a logistic regression for classes. Started again, it goes on.
With `--write` the table replaces what stands between `<!-- fashion -->` and `<!-- /fashion -->`.
"""

import argparse
import json
import pathlib

import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score

from albef_jax.evaluators.ranked import rankings, retrieval_scores
from runs import Run, last_values, markdown, spread, train_all, write_between_marks

# What a model knows -> the subsets of it that are seen.
MODELS = {"tip": ("t", "i", "p", "ti", "tip"), "t": ("t",), "i": ("i",)}
COLUMNS = {"category, accuracy": "accuracy/accuracy_{}", "category, mAP@1":
           "retrieval/coarse_{}_map1", "article, mAP@1": "retrieval/fine_{}_map1",
           "clusters, NMI": "clusters/nmi_{}"}


def runs_of(folder, runs, seeds):
    """Work directory -> its `Run`."""
    found = {}
    for seed in range(seeds):
        for letters in MODELS:
            start = runs / f"{letters}_{seed}"
            for task, workdir, init in (("pretrain", start, None), (
                    "classify", runs / f"{letters}_{seed}_classes", start)):
                found[workdir] = Run(f"configs/fashion.py:{task}:{letters}:{folder}", init,
                                     (f"--config.seed={seed}",))
    return found


def of_words(folder, with_table):
    """What TF-IDF of titles, or of titles and tables, gives: a value for each column."""
    rows = {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "dev")}

    def text(row):
        table = [word for pair in row["attributes"].items() for word in pair] * with_table
        return " ".join([row["title"], *table])

    words = TfidfVectorizer(sublinear_tf=True).fit(map(text, rows["train"]))
    train, dev = (words.transform(map(text, rows[split])) for split in ("train", "dev"))
    labels = {split: [np.array([row["category"][level] for row in rows[split]])
                      for level in (1, 2)] for split in rows}
    coarse, fine = labels["dev"]
    ranked = rankings(dev.toarray(), dev.toarray(), np.arange(len(coarse)))
    found = [retrieval_scores(ranked, truth, truth, dict(zip(*np.unique(
        truth, return_counts=True))))["map1"] for truth in (coarse, fine)]
    classes = LogisticRegression(C=10, max_iter=1000).fit(train, labels["train"][0])
    clusters = [KMeans(len(set(coarse)), n_init=1, random_state=seed).fit_predict(dev)
                for seed in range(3)]
    return [100 * classes.score(dev, coarse), *found,
            100 * np.mean([normalized_mutual_info_score(coarse, one) for one in clusters])]


def table(folder, runs, seeds):
    """The results as markdown: fine-tuned models by what they know and what is seen."""
    rows = []
    for letters, subsets in MODELS.items():
        for subset in subsets:
            cells = [spread([last_values(runs / f"{letters}_{seed}_classes", key.format(subset))[
                key.format(subset)] for seed in range(seeds)]) for key in COLUMNS.values()]
            rows.append([f"SCALE that knows {letters}", subset, *cells])
    for with_table, seen in ((False, "t"), (True, "tp")):
        rows.append(["TF-IDF", seen, *(f"{value:.1f}" for value in of_words(folder, with_table))])
    return markdown(["model", "seen", *COLUMNS], rows)


def main():
    """Runs what is missing, prints the table and writes it where wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("runs", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    train_all(runs_of(args.folder, args.runs, args.seeds), args.jobs)
    text = table(args.folder, args.runs, args.seeds)
    print(text)
    if args.write:
        write_between_marks(args.write, "fashion", text)


if __name__ == "__main__":
    main()
