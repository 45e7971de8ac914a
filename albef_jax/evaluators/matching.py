"""Accuracy of the image-text matching head on held-out pairs and drawn negatives."""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.retrieval import match_logits


class MatchingEvaluator:
    """Balanced ITM accuracy, in percent: one caption per image, one negative per pair.

    Negatives come from groups of held-out pairs, as in training. Every other pair of a group gets
    another image for its text, the rest another text for their image. An image appears once, also
    when the source lists it often, so no negative shows the image that its text describes.

    Yields `itm_accuracy_random` (uniform negatives) and `itm_accuracy_hard` (drawn with
    probability softmax(similarity / temperature), the ITM training distribution). The draws
    depend on the seed alone, hard ones also on the similarities.
    """

    fields = {"group_size": (64, 2), "temperature": (0.07, 0.001)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        self._temperature = settings["temperature"]
        self._held_out = data = HeldOut(source, settings, data_config, tokenizer)
        rng = np.random.default_rng(seed)
        self._texts = texts = rng.permutation(one_text_per_image(data.text_image, rng))
        self._groups = split_groups(np.arange(len(texts)), settings["group_size"])
        if not self._groups:
            raise UserError("The evals block of kind 'matching' needs at least two different "
                            "images; give its source more, or raise max_images.")
        self._draws = [rng.random((2, len(rows))) for rows in self._groups]
        self.description = (f"{sum(map(len, self._groups))} pairs in groups of "
                            f"{settings['group_size']}")

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        data, texts = self._held_out, self._texts
        data.bind(predict_fns, mesh, match_logits(predict_fns["match"]))
        image_embeds, image_feats = data.encode_images(params)
        images, text_mask = data.text_image[texts], data.text_mask[texts]
        text_embeds, text_feats = data.encode_texts(params, data.text_ids[texts], text_mask)

        pairs = {"positive": [], "random": [], "hard": []}
        for rows, (draw_random, draw_hard) in zip(self._groups, self._draws):
            sims = image_feats[images[rows]] @ text_feats[rows].T / self._temperature
            pairs["positive"].append(np.stack([rows, rows]))
            pairs["random"].append(rows[negative_pairs(np.zeros_like(sims), draw_random)])
            pairs["hard"].append(rows[negative_pairs(sims, draw_hard)])
        image, text = np.concatenate([np.concatenate(kind, 1) for kind in pairs.values()], 1)
        logits = data.score_pairs(params, image_embeds, images[image], text,
                                  dict(text_embeds=text_embeds, text_mask=text_mask))
        positive, random, hard = np.split(logits[:, 1] > logits[:, 0], len(pairs))
        for name, negative in (("random", random), ("hard", hard)):
            yield f"itm_accuracy_{name}", 50 * float(positive.mean() + 1 - negative.mean())


def one_text_per_image(text_image, rng):
    """One text of every image, drawn uniformly: int `[n]`."""
    shuffled = rng.permutation(len(text_image))
    return shuffled[np.unique(text_image[shuffled], return_index=True)[1]]


def split_groups(items, group_size):
    """Consecutive groups; the last may be smaller, and is dropped if it holds a single item."""
    groups = [items[i:i + group_size] for i in range(0, len(items), group_size)]
    return [group for group in groups if len(group) > 1]


def negative_pairs(sims_it, uniform_g):
    """One negative per pair of a group, drawn with probability softmax(similarity).

    Args:
      sims_it: similarity over temperature of image i and text t, `[g, g]`; the pairs themselves
        are on the diagonal and are never drawn.
      uniform_g: `[g]` in [0, 1), one draw per pair.

    Returns:
      int `[2, g]`, the image and the text of each negative: even pairs keep their text, odd pairs
      keep their image.
    """
    rows = np.arange(len(sims_it))
    others = np.where(np.eye(len(rows), dtype=bool), -np.inf, sims_it)
    even = rows % 2 == 0
    return np.stack([np.where(even, sample(others.T, uniform_g), rows),
                     np.where(even, rows, sample(others, uniform_g))])


def sample(logits_qc, uniform_q):
    """One column per row with probability softmax(row), by inversion of the uniform draws."""
    weights = np.exp(logits_qc.astype(np.float64) - logits_qc.max(axis=1, keepdims=True))
    cumulative = weights.cumsum(axis=1)
    return (cumulative > uniform_q[:, None] * cumulative[:, -1:]).argmax(axis=1)
