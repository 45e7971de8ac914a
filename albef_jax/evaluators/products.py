"""Products found, classified and clustered by any subset of their modalities (M5Product)."""

import functools
import importlib.util
import itertools
import json

import jax
import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators import product_cards
from albef_jax.evaluators.base import Chart, Evaluator, Group, Table
from albef_jax.evaluators.batches import Rows
from albef_jax.evaluators.classification import is_right
from albef_jax.evaluators.queries import spread
from albef_jax.evaluators.ranked import METRICS, rankings, retrieval_scores
from albef_jax.evaluators.recall import DEPTHS
from albef_jax.files import read_bytes
from albef_jax.models.scale import MODALITIES, is_subset, withheld
from albef_jax.tasks import task_class

LEVELS = ("coarse", "fine")  # what must be the same: the class, or the instance
LETTERS = "".join(MODALITIES)
INPUTS = {"inputs": ("subset", ("subset", "all"))}  # see `ProductEvaluator`
SHORT = {"map": "mAP@", "prec": "Prec@"}
SHOWN = 6  # queries on the page, and what each finds


def check_letters(subset, known):
    """Raises a UserError where these are not letters of the `known` modalities of the model."""
    if not is_subset(subset, known):
        raise UserError(f"An evaluator of products got the modalities {subset!r}; write some of "
                        f"the letters {known or LETTERS} of config.model.modalities.")


class ProductEvaluator(Evaluator):
    """What evaluators of products share: features of each product by subset of modalities.

    A subset is written as letters: t title, i image, p table, v video, a audio. Of a subset the
    model sees nothing else; with the option `inputs='all'` it sees everything, and only the joint
    features of the subset are summed up, as in the public code. Whatever the number of subsets, the
    data is read once. A fine-tuned model's features are its hidden layer.

    Attributes:
      subsets: as letters.
    """

    options = Rows.options | {"subsets": ((), None)}

    def __init__(self, *args):
        super().__init__(*args)
        known = self.config.model.modalities
        self.subsets = self.settings["subsets"] or [known[:n + 1] for n in range(len(known))]
        fields = task_class(self.config.task).fields(self.config)
        self._rows = Rows(self, {name: fields[name] for name in MODALITIES.values()
                                 if name in fields})

    @classmethod
    def check(cls, settings, config):
        """Subsets are letters of modalities that the model has; see `Evaluator.check`."""
        known = config.model.get("modalities", "")
        for subset in settings["subsets"] or [known]:
            check_letters(subset, known)

    def names_of(self, level):
        """The names of class or instance of all products, an array; raises UserError."""
        if level not in self.source.fields:
            raise UserError(f"The source of an evaluator of products has no field {level!r}; give "
                            "its products a category.")
        return np.array([self.source.get(i, level) for i in range(len(self._rows))])

    def encode(self, forward, subset):
        """Features of a subset of all products, float32 `[n, d]`."""
        sees_all = self.settings["inputs"] == "all"
        return features(self.encoded(forward, "encode", "" if sees_all else subset), subset)

    def encoded(self, forward, call, seen):
        """What a function gives for all products of which only the letters `seen` are seen.

        The first time it is asked the data goes through it for all that will be asked.

        Args:
          seen: one of `subsets` or of `also`; '': everything is seen.
        """
        sees_all = self.settings.get("inputs") == "all"
        wanted = dict.fromkeys([*([""] if sees_all else self.subsets), *self.also()])
        keys = {one: (self.source, len(self._rows), call, one) for one in wanted}
        new = [one for one in wanted if keys[one] not in forward.kept]
        made = self._rows.run_changed(forward, forward[call], [change(one) for one in new],
                                      "products") if new else ()
        for one, result in zip(new, made):
            forward.kept[keys[one]] = result
        return forward.kept[keys[seen]]

    def also(self):
        """More subsets to encode."""
        return ()


def change(seen):
    """A function from the arrays of a batch to those of which only these letters are seen."""
    if not seen:
        return lambda arrays: arrays
    return lambda arrays: jax.tree.map(np.asarray, withheld(arrays, seen))


def features(encoded, subset):
    """The features of a subset from what `encode` gave, `[n, d]`."""
    if "hidden" in encoded:
        return encoded["hidden"]
    return functools.reduce(np.add, [encoded[f"joint_{letter}"] for letter in subset])


class ProductRetrieval(ProductEvaluator):
    """Every product finds products of its category, and of its instance, among all others.

    Yields for each subset `coarse_SUBSET_map1`, `..._map5`, `..._map10`, `..._prec1`, `..._prec5`
    and `..._prec10` in percent, the same `fine_...`, and `coarse_map1` and `fine_map1` of the last
    subset. For each of `crossed`, such as 'vt', the same `cross_vt_...`: the instances that a
    query's video finds among titles, by cosine; products that lack one of both are left out.

    The options `queries` and `gallery` name files with ids, a JSON list or one per line; by default
    all products are both. A query's own row is never a hit.
    """

    options = ProductEvaluator.options | INPUTS | {
        "crossed": ((), None), "queries": ("", ""), "gallery": ("", "")}
    calls = ("encode",)
    headline = {"fine_map1": "instances found, mAP@1", "coarse_map1": "categories found, mAP@1"}
    charts = (Chart("Held-out {name}, mAP@1 in %", {"fine_map1": "instance",
                                                    "coarse_map1": "category"}, top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        self._labels = {level: self.names_of(level) for level in LEVELS}
        self._names = [self.source.name(i) for i in range(len(self._rows))]
        self._queries, self._gallery = (self._chosen(self.settings[name])
                                        for name in ("queries", "gallery"))
        places = {row: place for place, row in enumerate(self._gallery)}
        self._own = np.array([places.get(row, -1) for row in self._queries])
        self.description = (f"{len(self._queries)} queries, {len(self._gallery)} products, "
                            + ", ".join(f"{len(set(labels))} {level}" for level, labels
                                        in self._labels.items()))

    @classmethod
    def check(cls, settings, config):
        """Of `crossed` too; see `Evaluator.check`."""
        super().check(settings, config)
        for pair in settings["crossed"]:
            check_letters(pair, config.model.modalities)
            if len(pair) != 2:
                raise UserError(f"The option crossed has {pair!r}; write two letters, of the query "
                                "and of what is found.")

    def names(self):
        """See `Evaluator.names`."""
        return [*(f"{level}_{subset}_{metric}" for subset in self.subsets for level in LEVELS
                  for metric in METRICS),
                *(f"cross_{pair}_{metric}" for pair in self.settings["crossed"]
                  for metric in METRICS), *(f"{level}_map1" for level in LEVELS)]

    def run(self, forward):
        """Yields (name, percent)."""
        last = {}
        for subset in self.subsets:
            found = self.encode(forward, subset)
            ranked = rankings(found[self._queries], found[self._gallery], self._own)
            for level, labels in self._labels.items():
                last[level] = retrieval_scores(ranked, labels[self._queries],
                                               labels[self._gallery], self._positives(labels))
                for metric, value in last[level].items():
                    yield f"{level}_{subset}_{metric}", value
        for pair in self.settings["crossed"]:
            for metric, value in self._crossed(forward, *pair).items():
                yield f"cross_{pair}_{metric}", value
        for level in LEVELS:
            yield f"{level}_map1", last[level]["map1"]

    def also(self):
        """See `ProductEvaluator.also`."""
        return sorted(set("".join(self.settings["crossed"])))

    def _crossed(self, forward, query, found):
        """Scores of what one modality finds of another."""
        sides = []
        for letter, rows in ((query, self._queries), (found, self._gallery)):
            has = np.array([MODALITIES[letter] in self.source.modalities(i) for i in rows])
            encoded = self.encoded(forward, "encode", letter)
            of_letter = encoded.get(letter, encoded.get(f"joint_{letter}"))
            chosen = np.asarray(rows)[has]
            sides.append((unit(of_letter[chosen]), self._labels["fine"][chosen]))
        (queries, query_labels), (gallery, gallery_labels) = sides
        if not len(queries) or not len(gallery):
            return dict.fromkeys(METRICS, 0.0)
        return retrieval_scores(rankings(queries, gallery), query_labels, gallery_labels)

    def _positives(self, labels):
        """Label -> how many queries and gallery items have it, each once."""
        rows = np.union1d(self._queries, self._gallery)
        return dict(zip(*np.unique(labels[rows], return_counts=True)))

    def _chosen(self, path):
        """The rows of the products whose ids a file lists; without a file all."""
        if not path:
            return list(range(len(self._names)))
        try:
            text = read_bytes(path).decode()
            ids = json.loads(text) if text.lstrip().startswith("[") else text.split()
        except (OSError, ValueError) as error:
            raise UserError(f"The list of ids {path} cannot be read ({error}); give a JSON list, "
                            "or a file with one id per line.") from None
        rows = {name: row for row, name in enumerate(self._names)}
        missing = [name for name in map(str, ids) if name not in rows]
        if missing or not ids:
            raise UserError(f"The list of ids {path} has {len(missing)} that no product has, such "
                            f"as {missing[:3]}; give ids of the evaluator's source.")
        return [rows[str(name)] for name in ids]

    @classmethod
    def label(cls, name):
        """See `Evaluator.label`."""
        return name.replace("_", " ").replace("map", SHORT["map"]).replace("prec", SHORT["prec"])

    @classmethod
    def table(cls, values):
        """A row per subset, as the paper has it; see `Evaluator.table`."""
        parts = [name.split("_") for name in values if name.count("_") == 2]
        found = dict.fromkeys(subset for level, subset, _ in parts if level in LEVELS)
        crossed = dict.fromkeys(pair for level, pair, _ in parts if level not in LEVELS)
        rows = [(subset_name(subset), [[values.get(f"{level}_{subset}_{metric}")
                                        for metric in METRICS] for level in LEVELS])
                for subset in found]
        rows += [(f"{subset_name(pair[0])} finds {subset_name(pair[1])}",
                  [[None] * len(METRICS), [values[f"cross_{pair}_{metric}"] for metric in METRICS]])
                 for pair in crossed]
        columns = tuple(f"{short}{depth}" for short in SHORT.values() for depth in DEPTHS)
        return Table(rows, (Group("category", columns, strong=False), Group("instance", columns)))

    def examples(self, forward, teacher):
        """Queries and what they find first by the last subset; see `report/products.html`."""
        del teacher
        found, labels = self.encode(forward, self.subsets[-1]), self._labels["fine"]
        shown = spread(len(self._queries), SHOWN)
        queries = [int(self._queries[i]) for i in shown]
        ranked = rankings(found[queries], found[self._gallery], self._own[shown], SHOWN)
        arrays, letters = self._rows.data.some(queries), self.config.model.modalities
        cards = [product_cards.card(self.source, row) for row in queries]
        swapped, before, after = product_cards.trust(forward, arrays, letters)
        guessed = product_cards.guessed_entities(
            forward, arrays, self.tokenizer, [one["table"] for one in cards]) if (
            "words" in forward and "p" in letters) else [None] * len(cards)
        return {"products": {
            "gallery": len(self._gallery), "swapped": MODALITIES[swapped],
            "letters": [MODALITIES[letter] for letter in letters],
            "queries": [one | {
                "scores": before and (before[i], after[i]), "entity": guessed[i],
                "found": [product_cards.card(self.source, row)
                          | {"hit": bool(labels[row] == labels[queries[i]])}
                          for row in (self._gallery[place] for place in ranked[i] if place >= 0)]}
                for i, one in enumerate(cards)]}}


def subset_name(subset):
    """Letters as words: 'title + regions'."""
    return " + ".join(MODALITIES[letter] for letter in subset)


def unit(rows):
    """Unit vectors `[n, d]`; zeros stay zeros."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class ProductClassification(ProductEvaluator):
    """The share of products whose category is told, `accuracy_SUBSET`, and `accuracy` of the last.

    `majority` is what always answering the most frequent category gives.
    """

    calls = ("classify",)
    asks = ("label",)
    headline = {"accuracy": "held-out accuracy"}
    labels = {"majority": "always the commonest category"}
    charts = (Chart("Held-out {name}, %", {"accuracy": "accuracy"}, blind="majority",
                    note="dashed: always the commonest category", top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        self._labels = np.array([self.source.get(i, "label") for i in range(len(self._rows))])
        count = len(self.source.fields["label"]["class_names"])
        self.description = f"{len(self._labels)} products of {count} categories"

    def names(self):
        """See `Evaluator.names`."""
        return ["majority", *(f"accuracy_{subset}" for subset in self.subsets), "accuracy"]

    def run(self, forward):
        """Yields (name, percent)."""
        yield "majority", 100 * float(np.max(np.bincount(self._labels))) / len(self._labels)
        for subset in self.subsets:
            logits = self.encoded(forward, "classify", subset)
            accuracy = 100 * float(np.mean(is_right(logits, self._labels)))
            yield f"accuracy_{subset}", accuracy
        yield "accuracy", accuracy

    @classmethod
    def label(cls, name):
        """See `Evaluator.label`."""
        _, _, subset = name.partition("accuracy_")
        return f"accuracy: {subset_name(subset)}" if subset else super().label(name)


class ProductClustering(ProductEvaluator):
    """K-means of the features with as many clusters as there are classes.

    Yields `nmi_SUBSET` (arithmetic) and `purity_SUBSET`, the share of products that are of the
    commonest class of their cluster, in percent, as means over `seeds` starts; `nmi` and `purity`
    are those of the last subset. `level` says what a class is.
    """

    options = ProductEvaluator.options | INPUTS | {"seeds": (3, 1), "level": ("coarse", LEVELS)}
    calls = ("encode",)
    headline = {"nmi": "clusters, NMI", "purity": "clusters, purity"}
    charts = (Chart("Held-out {name}, %", {"nmi": "NMI", "purity": "purity"}, top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        if importlib.util.find_spec("sklearn") is None:  # an extra
            raise UserError("Clusters of products need scikit-learn; install it with pip install "
                            "'albef_jax[cluster]'.")
        level = self.settings["level"]
        self._labels = np.unique(self.names_of(level), return_inverse=True)[1]
        self.description = f"{len(self._labels)} products, {self._labels.max() + 1} clusters"

    def names(self):
        """See `Evaluator.names`."""
        return [*(f"{metric}_{subset}" for subset, metric in itertools.product(
            self.subsets, ("nmi", "purity"))), "nmi", "purity"]

    def run(self, forward):
        """Yields (name, percent)."""
        for subset in self.subsets:
            scores = cluster_scores(self.encode(forward, subset), self._labels,
                                    self.settings["seeds"])
            for metric, value in scores.items():
                yield f"{metric}_{subset}", value
        yield from scores.items()


def cluster_scores(rows, labels, seeds):
    """NMI and purity of k-means, in percent.

    Args:
      rows: features `[n, d]`. labels: int `[n]`, from 0. seeds: starts, whose scores are averaged.
    """
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    scores = []
    for seed in range(seeds):
        clusters = KMeans(labels.max() + 1, n_init=1, random_state=seed).fit_predict(rows)
        counts = contingency_matrix(labels, clusters)  # [classes, clusters]
        scores.append((normalized_mutual_info_score(labels, clusters),
                       counts.max(axis=0).sum() / len(labels)))
    return dict(zip(("nmi", "purity"), (100 * np.mean(scores, axis=0)).tolist()))
