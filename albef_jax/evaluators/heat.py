"""Where a model looks for the words of a text, see `models.gradcam`: maps, and pictures of them."""

import functools
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.text import PREFIX
from albef_jax.evaluators.queries import spread
from albef_jax.models.resample import upsample

COLOURS = "turbo"  # matplotlib's name
STRENGTH = 0.6  # of the colour at the hottest place
# On the page about a run: examples; words of a text, of a longer one those of most heat; and
# pixels of a picture's longer side.
EXAMPLES, WORDS, SIDE = 5, 10, 120


class Explanation(NamedTuple):
    """Where a model looks."""

    heat: np.ndarray  # of the whole text, float32 `[g, g]` over the g x g patches of the image
    words: list[str]  # w words; none in mode 'itc', where the text is read as a whole
    word_heat: np.ndarray  # float32 `[w, g, g]`
    score: float  # probability of a match ('itm') or cosine similarity ('itc')


@functools.lru_cache(maxsize=64)
def explainer(heat, mode, layer=-1):
    """A function of params, images and texts: heat of texts, of tokens, and scores.

    In 'itm' the heat of a text is the mean over all its positions, padding included, as in the
    public code; in 'itc', where the text is read as a whole, tokens have none.

    Args:
      heat: `itm_heat` or `itc_heat` of `Task.predict_fns`, as `mode` says ('itm', 'itc').
      layer: as in `models.gradcam`; -1: its default.
    """
    def itm(params, image, text_ids, text_mask):
        tokens, logits_b2 = heat(params, image=image, text_ids=text_ids, text_mask=text_mask,
                                 layer=layer)
        return tokens.mean(axis=1), tokens, jax.nn.softmax(logits_b2)[:, 1]

    def itc(params, image, text_ids, text_mask):
        whole, scaled_b = heat(params, image=image, text_ids=text_ids, text_mask=text_mask,
                               block=layer)
        return whole, None, scaled_b * params["temp"]

    return itm if mode == "itm" else itc


def explanation(result, row, ids_l, tokenizer):
    """One row of an explainer's result, word pieces joined to words."""
    heat, tokens, scores = result
    words, numbers = ([], None) if tokens is None else join_pieces(ids_l, tokenizer)
    word_heat = np.zeros((len(words), *heat.shape[1:]), np.float32)
    if words:
        np.add.at(word_heat, numbers[numbers >= 0], np.asarray(tokens[row])[numbers >= 0])
    return Explanation(np.asarray(heat[row]), words, word_heat, float(scores[row]))


def join_pieces(ids_l, tokenizer):
    """The words of a text, and the word of each token, -1 for special ones; int `[l]`."""
    pad, unknown, cls, sep, _ = tokenizer.special_ids
    words, numbers = [], np.full(len(ids_l), -1)
    for place, token in enumerate(ids_l):
        if token in (pad, cls, sep):
            continue
        piece = "[UNK]" if token == unknown else tokenizer.decode([token])
        if piece.startswith(PREFIX) and words:
            words[-1] += piece.removeprefix(PREFIX)
        else:
            words.append(piece)
        numbers[place] = len(words) - 1
    return words, numbers


def scaled(picture, side):
    """A Pillow image with `side` pixels along its longer side."""
    size = (max(1, round(side * length / max(picture.size))) for length in picture.size)
    return picture.resize(tuple(size), Image.Resampling.LANCZOS)


def overlay(picture, heat_gg):
    """A Pillow image with a heat map over it; the hottest place gets the full colour."""
    heat = np.clip(upsample(heat_gg, picture.height, picture.width), 0, None)
    heat = heat / max(heat.max(), np.finfo(np.float32).tiny)
    colours = matplotlib.colormaps[COLOURS](heat)[..., :3] * 255
    share = STRENGTH * heat[..., None] ** 0.5
    return Image.fromarray((np.asarray(picture) * (1 - share) + colours * share).astype(np.uint8))


def word_shares(explained):
    """The hottest place of each word relative to that of the hottest word, float `[w]`."""
    heat_w = explained.word_heat.max(axis=(1, 2), initial=0)
    return heat_w / max(heat_w.max(initial=0), np.finfo(np.float32).tiny)


def source_pictures(forward, evaluator):
    """Heat maps of a few examples of an `Evaluator`'s source, for the page about a run.

    `forward` has the function `itm_heat`. A list of dicts comes back: `picture`, `heat` (of the
    whole text, with the box where there is one), `text`, `score` (probability of a match) and
    `words` (dicts with `text`, `picture`, `share` of the hottest word).
    """
    fields = {name: evaluator.fields[name] for name in ("image", "text")}
    data = EvalRows(evaluator.source, fields, evaluator.tokenizer, evaluator.config.data)
    examples = spread(len(data), EXAMPLES)
    arrays = data.some(examples)
    explain = forward.compiled(explainer(forward["itm_heat"], "itm"))
    result = jax.device_get(explain(forward.params, **arrays))
    return [picture_row(data, example, explanation(result, row, ids, evaluator.tokenizer))
            for row, (example, ids) in enumerate(zip(examples, arrays["text_ids"]))]


def picture_row(data, example, explained):
    """One example; see `source_pictures`."""
    (picture,) = data.pictures(example)
    picture = scaled(picture, SIDE)
    heat = overlay(picture, explained.heat)
    if "box" in data.source.fields:
        size = data.source.get(example, "size")
        across, down = (new / old for new, old in zip(heat.size, size))
        x, y, w, h = data.source.get(example, "box")
        corners = x * across, y * down, (x + w) * across - 1, (y + h) * down - 1
        ImageDraw.Draw(heat).rectangle(corners, outline="white", width=2)
    shares = word_shares(explained)
    shown = sorted((-shares).argsort(kind="stable")[:WORDS])
    words = [{"text": explained.words[i], "share": float(shares[i]),
              "picture": overlay(picture, explained.word_heat[i])} for i in shown]
    return {"picture": picture, "heat": heat, "text": data.text(example),
            "score": explained.score, "words": words}
