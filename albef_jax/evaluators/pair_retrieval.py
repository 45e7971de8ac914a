"""Retrieval with a model that sees image and text together: every pair is scored.

ImageBERT (arXiv:2001.07966) has no features to choose candidates by. With those of another model,
only the best candidates of every image and text are scored.
"""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator, Phases
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.queries import queries
from albef_jax.evaluators.recall import (
    DEPTHS, RECALLS, TITLES, candidates, fold_recalls, recalls)
from albef_jax.evaluators.retrieval import SCORES, TEXTS_PER_IMAGE
from albef_jax.files import local_copy

CALLS = ("embed_image", "embed_text", "score")
PAIRS_AT_ONCE = 2**22  # whose numbers are held at a time; any number gives the same scores
CHOSEN_FROM = 24  # images, of queries on the page: every pair of these is scored
FOLDS = "fold_"


class PairRetrievalEvaluator(Evaluator):
    """Recall at 1, 5 and 10 both ways, in percent; the lower index first among equal scores.

    Yields `i2t_r1`, ... `t2i_r10` and `r_mean`; with `folds`, say 5, also `fold_i2t_r1` ...: the
    mean over so many equal parts of the images. `candidates` is an `.npz` that `albef embed` of a
    model with features (ALBEF) made of the same images and texts: then only the best `k` of it are
    scored for every image and every text.

    Attributes:
      seconds: what the last run took, by phase. num_pairs: that it scored.
    """

    options = HeldOut.options | {"folds": (0, 0), "candidates": ("", ""), "k": (32, 1)}
    calls = CALLS
    asks = ("regions", "text", "image_id")
    headline = {"t2i_r1": "text to image, R@1", "i2t_r1": "image to text, R@1"}
    charts = tuple(
        Chart(f"{title.capitalize()}, R@K in %", {f"{way}_r{d}": f"R@{d}" for d in DEPTHS})
        for way, title in TITLES.items())

    def __init__(self, *args):
        super().__init__(*args)
        self.held_out = data = HeldOut.of(self, CALLS)
        self._chosen = self._candidates() if self.settings["candidates"] else None
        which = f"the best {self.settings['k']} of {self.settings['candidates']}" if (
            self.settings["candidates"]) else "all pairs"
        self.description = f"{data.num_images} images, {len(data.texts)} texts, {which} scored"
        if self.settings["folds"] > data.num_images:
            raise UserError(f"The evals block of kind 'pair_retrieval' has "
                            f"folds={self.settings['folds']}, more than its {data.num_images} "
                            "images; lower it.")
        self.seconds, self.num_pairs = Phases(), 0

    def names(self):
        return [*RECALLS, *(FOLDS + name for name in RECALLS if self.settings["folds"])]

    def run(self, forward):
        data, folds, self.seconds = self.held_out, self.settings["folds"], Phases()
        with self.seconds.timed("embed images"):
            data.encode_images(forward)
        with self.seconds.timed("embed texts"):
            data.encode_texts(forward)
        with self.seconds.timed(SCORES):
            scores = self.scores(forward)
        yield from recalls(scores, scores.T, data.text_image, "lower").items()
        if folds:
            for name, value in fold_recalls(scores, data.text_image, folds, "lower").items():
                yield FOLDS + name, value

    def scores(self, forward):
        """Match logits float32 `[n, m]` of images and texts; of no candidates `recall.UNSCORED`."""
        data, rows = self.held_out, []
        n, m = data.num_images, len(data.texts)
        chosen_nm = np.broadcast_to(True, (n, m)) if self._chosen is None else self._chosen
        self.num_pairs = int(np.count_nonzero(chosen_nm))
        at_once = max(1, PAIRS_AT_ONCE // m)
        for first in range(0, n, at_once):
            rows.append(data.match_scores(forward, chosen_nm[first:first + at_once],
                                          per_image=min(TEXTS_PER_IMAGE, m), first=first))
        return np.concatenate(rows)

    def _candidates(self):
        """Which pairs are scored, bool `[n, m]`."""
        path, data, k = self.settings["candidates"], self.held_out, self.settings["k"]
        try:
            with np.load(local_copy(path)) as arrays:
                sims = arrays["image_features"] @ arrays["caption_features"].T
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} holds no features of images and captions ({error}); make it "
                            "with `albef embed`.") from None
        if sims.shape != (data.num_images, len(data.texts)):
            raise UserError(f"{path} holds {sims.shape[0]} images and {sims.shape[1]} captions, "
                            f"but the evaluation data have {data.num_images} and "
                            f"{len(data.texts)}; make it of the same data with `albef embed`.")
        return candidates(sims, k) | candidates(sims.T, k).T

    def beneath(self, name, values):
        return [f"guessing: {100 / self.held_out.num_images:.2g}%"]

    def examples(self, forward, teacher):
        """Queries both ways, where the source has pictures."""
        if "image" not in self.source.fields:
            return {}
        data = self.held_out.first(CHOSEN_FROM)
        return queries(forward, data, len(data.texts), np.zeros((data.num_images,
                                                                 len(data.texts))))
