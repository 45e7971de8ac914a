"""Accuracy of the image-text matching head on held-out pairs and drawn negatives."""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.held_out import HeldOut


class MatchingEvaluator(Evaluator):
    """Balanced ITM accuracy, in percent: one caption per image, one negative per pair.

    Negatives come from groups of held-out pairs, as in training. Every other pair of a group gets
    another image for its text, the rest another text for their image. An image appears once, also
    when the source lists it often, and no text that its source knows to be true of an image is a
    negative for it. A pair without any negative in its group is left out.

    Yields `itm_accuracy_random` (uniform negatives) and `itm_accuracy_hard` (drawn with
    probability softmax(similarity / temperature), the ITM training distribution). The temperature
    is the model's own; an option `temperature` that is not 0 takes its place. The draws depend on
    the seed alone, hard ones also on the similarities.
    """

    options = HeldOut.options | {"group_size": (64, 2), "temperature": (0.0, 0.0)}
    calls = ("encode_image", "encode_text", "match")
    asks = ("image", "text", "image_id")
    labels = {"itm_accuracy_random": "random negatives", "itm_accuracy_hard": "hard negatives"}
    headline = {"itm_accuracy_hard": "ITM, hard negatives"}
    charts = (Chart("Matching and masked words, %",
                    {"itm_accuracy_hard": "hard negatives",
                     "itm_accuracy_random": "random negatives"}, top=100),)

    def __init__(self, *args):
        super().__init__(*args)
        settings = self.settings
        self._held_out = data = HeldOut.of(self)
        rng = np.random.default_rng(self.config.seed)
        self._texts = texts = rng.permutation(one_text_per_image(data.text_image, rng))
        groups = split_groups(np.arange(len(texts)), settings["group_size"])
        if not groups:
            raise UserError("The evals block of kind 'matching' needs at least two different "
                            "images; give its source more, or raise max_images.")
        # Of each group: its rows, a random and a hard draw for each, and what may be drawn.
        self._groups = [(rows, rng.random((2, len(rows))), candidates(self._describes(rows)))
                        for rows in groups]
        asked = sum(int(candidate.any(axis=1).sum()) for *_, candidate in self._groups)
        left_out = sum(map(len, groups)) - asked
        if not asked:
            raise UserError("The evals block of kind 'matching' finds no negatives: every caption "
                            "is true of every image of its group; raise group_size.")
        self.description = f"{asked} pairs in groups of {settings['group_size']}" + (
            f", {left_out} left out for want of a negative" if left_out else "")

    def names(self):
        return ["itm_accuracy_random", "itm_accuracy_hard"]

    def run(self, forward):
        data = self._held_out
        temperature = self.settings["temperature"] or float(forward.params["temp"])
        image_feats, text_feats = data.encode_images(forward)[1], data.encode_texts(forward)[1]
        pairs = []  # of each group `[3, 2, a]`: true ones, random negatives, hard ones
        for rows, draws, candidate in self._groups:
            texts, asked = self._texts[rows], np.flatnonzero(candidate.any(axis=1))
            sims = image_feats[data.text_image[texts]] @ text_feats[texts].T
            logits = np.zeros_like(sims), sims / temperature
            pairs.append(rows[np.stack([
                [asked, asked], *(negative_pairs(*one, candidate) for one in zip(logits, draws))])])
        image, text = self._texts[np.concatenate(pairs, axis=2)].swapaxes(0, 1).reshape(2, -1)
        logits = data.match(forward, data.text_image[image], text)
        positive, random, hard = np.split(logits[:, 1] > logits[:, 0], 3)
        for name, negative in (("random", random), ("hard", hard)):
            yield f"itm_accuracy_{name}", 50 * float(positive.mean() + 1 - negative.mean())

    def beneath(self, name, values):
        return ["guessing: 50%"]

    def _describes(self, rows):
        """Whether text t of a group is true of image i: bool `[g, g]`, rows are images."""
        texts = self._texts[rows]
        images = self._held_out.text_image[texts]
        return np.array([[self._held_out.describes(t, i) for t in texts.tolist()]
                         for i in images.tolist()])


def one_text_per_image(text_image, rng):
    """One text of every image, drawn uniformly: int `[n]`."""
    shuffled = rng.permutation(len(text_image))
    return shuffled[np.unique(text_image[shuffled], return_index=True)[1]]


def split_groups(items, group_size):
    """Consecutive groups; the last may be smaller, and is dropped if it holds a single item."""
    groups = [items[i:i + group_size] for i in range(0, len(items), group_size)]
    return [group for group in groups if len(group) > 1]


def candidates(describes_it):
    """What may replace one side of each pair of a group: bool `[g, g]`, see `of_pairs`.

    `describes_it`: whether text t is true of image i, bool `[g, g]`; the pairs themselves are on
    the diagonal and never candidates.
    """
    return of_pairs(~describes_it & ~np.eye(len(describes_it), dtype=bool))


def of_pairs(values_it):
    """One row per pair of a group `[g, g]`: even pairs look at images, odd pairs at texts."""
    even = np.arange(len(values_it)) % 2 == 0
    return np.where(even[:, None], values_it.T, values_it)


def negative_pairs(sims_it, uniform_g, candidates_gc):
    """The images and the texts of negatives, int `[2, a]`, one for each pair with a candidate.

    Even pairs keep their text, odd pairs keep their image.

    Args:
      sims_it: similarity over temperature of image i and text t, `[g, g]`: one is drawn with
        probability softmax(similarity).
      uniform_g: `[g]` in [0, 1), one draw per pair.
      candidates_gc: what may be drawn, bool `[g, g]`, see `candidates`.
    """
    pairs = np.flatnonzero(candidates_gc.any(axis=1))
    logits = np.where(candidates_gc, of_pairs(sims_it), -np.inf)[pairs]
    drawn = sample(logits, uniform_g[pairs])
    even = pairs % 2 == 0
    return np.stack([np.where(even, drawn, pairs), np.where(even, pairs, drawn)])


def sample(logits_qc, uniform_q):
    """One column per row with probability softmax(row), by inversion of the uniform draws."""
    weights = np.exp(logits_qc.astype(np.float64) - logits_qc.max(axis=1, keepdims=True))
    cumulative = weights.cumsum(axis=1)
    return (cumulative > uniform_q[:, None] * cumulative[:, -1:]).argmax(axis=1)
