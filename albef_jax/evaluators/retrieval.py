"""Image-text retrieval (ALBEF section 4): ITC ranks all, ITM re-ranks the best k of each query."""

import numpy as np

from albef_jax.evaluators.base import Chart, Evaluator, Group, Phases, Table
from albef_jax.evaluators.heat import source_pictures
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.queries import SHOWN_IMAGES, pseudo_targets, queries
from albef_jax.evaluators.recall import (
    DEPTHS, MEAN, RECALLS, TITLES, UNSCORED, candidates, recalls)
from albef_jax.evaluators.words import hidden_words

# Texts that share the keys and values of an image in one block of pairs.
TEXTS_PER_IMAGE = 16
SCORES = "scores of candidates"  # the phase that is most of an evaluation
SHOWN_CANDIDATES = 32  # at most, that queries on the page choose from


class RetrievalEvaluator(Evaluator):
    """Recall at 1, 5 and 10 both ways, in percent.

    Yields `itc_i2t_r1`, ... `itc_r_mean` (ranking by similarity), then `i2t_r1`, `i2t_r5`,
    `i2t_r10`, `t2i_r1`, `t2i_r5`, `t2i_r10` and `r_mean` (the best k re-ranked by the match
    logit); before these, for every k of `ks`, `i2t_r1@k`, ... `r_mean@k`. A pair is scored once,
    however many depths and directions it is chosen for.

    With `rank='sum'` candidates are ordered by the log odds of a match plus the similarity over the
    temperature. A matching head that learns on negatives drawn by similarity learns what similarity
    does not tell: the two add up to the odds of a pair among all.

    Attributes:
      seconds: what the last run took, by phase. num_pairs: that it scored.
    """

    options = HeldOut.options | {"k": (128, 1), "ks": ((), 1),
                                 "rank": ("match", ("match", "sum"))}
    calls = ("encode_image", "encode_text", "match")
    asks = ("image", "text", "image_id")
    headline = {"t2i_r1": "text to image, R@1", "i2t_r1": "image to text, R@1"}
    charts = tuple(
        Chart(f"{title.capitalize()}, R@K in %", {f"{way}_r{d}": f"R@{d}" for d in DEPTHS},
              dashed=tuple(f"itc_{way}_r{d}" for d in DEPTHS),
              note="solid: re-ranked, dashed: contrastive alone")
        for way, title in TITLES.items())

    def __init__(self, *args):
        super().__init__(*args)
        self._k, self._ks = self.settings["k"], self.settings["ks"]
        self._sums = self.settings["rank"] == "sum"
        self.held_out = data = HeldOut.of(self)
        self.description = (f"{data.num_images} images, {len(data.texts)} texts, "
                            f"the best {self._k} re-ranked")
        self.seconds, self.num_pairs = Phases(), 0

    def names(self):
        return [*(f"itc_{name}" for name in RECALLS),
                *(f"{name}@{k}" for k in self._ks for name in RECALLS), *RECALLS]

    def run(self, forward):
        data, self.seconds = self.held_out, Phases()
        with self.seconds.timed("encode images"):
            _, image_feats = data.encode_images(forward)
        with self.seconds.timed("encode texts"):
            _, text_feats = data.encode_texts(forward)
        with self.seconds.timed("similarities and candidates"):
            sims = image_feats @ text_feats.T
            chosen = {k: (candidates(sims, k), candidates(sims.T, k).T)
                      for k in (*self._ks, self._k)}
            wanted = np.logical_or.reduce([way for both in chosen.values() for way in both])
            self.num_pairs = int(wanted.sum())
        with self.seconds.timed("recalls by similarity"):
            values = recalls(sims, sims.T, data.text_image)
        for name, value in values.items():
            yield f"itc_{name}", value

        with self.seconds.timed(SCORES):
            match = data.match_scores(
                forward, wanted, per_image=min(TEXTS_PER_IMAGE, max(chosen), len(data.texts)),
                odds=self._sums)
        if self._sums:
            match = match + sims / float(forward.params["temp"])
        for k in self._ks:
            for name, value in self._recalls(match, *chosen[k]).items():
                yield f"{name}@{k}", value
        yield from self._recalls(match, *chosen[self._k]).items()

    def _recalls(self, match, chosen_i2t, chosen_t2i):
        with self.seconds.timed("recalls of candidates"):
            least = -np.inf if self._sums else UNSCORED
            return recalls(np.where(chosen_i2t, match, least),
                           np.where(chosen_t2i, match, least).T, self.held_out.text_image)

    @classmethod
    def table(cls, values):
        """Both directions before and after re-ranking."""
        def row(*names):
            return [[values.get(f"{stage}{name}") for name in names] for stage in ("itc_", "")]

        depths = tuple(f"R@{depth}" for depth in DEPTHS)
        rows = [(title, row(*(f"{way}_r{depth}" for depth in DEPTHS)))
                for way, title in TITLES.items()]
        return Table([*rows, ("mean of the six", row(MEAN))], (
            Group("contrastive (ITC)", depths, strong=False), Group("re-ranked (ITM)", depths)))

    def beneath(self, name, values):
        before = values.get(f"itc_{name}")
        return [f"{before:.1f}% before re-ranking"] * (before is not None) + [
            f"guessing: {100 / self.held_out.num_images:.2g}%"]

    def examples(self, forward, teacher):
        """Queries both ways, and what else the model can: words, heat maps, teacher's choices."""
        data = self.held_out.first(SHOWN_IMAGES)
        sims = data.encode_images(forward)[1] @ data.encode_texts(forward)[1].T
        sections = queries(forward, data, min(self._k, SHOWN_CANDIDATES), sims)
        if teacher and "temp" in forward.params:
            sections["pseudo_targets"] = pseudo_targets(forward, teacher, data)
        if "mlm_logits" in forward:
            sections["words"] = hidden_words(forward, teacher, data, self.tokenizer,
                                             self.config.seed)
        if "itm_heat" in forward:
            sections["heat"] = source_pictures(forward, self)
        return sections
