"""A picture of where a model looks for the words of a text, see `models.gradcam`."""

from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from albef_jax.data.text import PREFIX
from albef_jax.errors import UserError
from albef_jax.models import gradcam
from albef_jax.models.resample import upsample

MODES = ("itm", "itc")
COLOURS = "turbo"  # matplotlib's name
STRENGTH = 0.6  # of the colour at the hottest place
SIDE, GAP, LABEL, PER_ROW = 240, 10, 26, 5  # of the sheet; pixels, and tiles


class Explanation(NamedTuple):
    """Where a model looks.

    Attributes:
      heat: of the whole text, float32 `[g, g]` over the g x g patches of the image.
      words: w words; none in mode 'itc', where the text is read as a whole.
      word_heat: float32 `[w, g, g]`.
      score: probability of a match ('itm') or cosine similarity ('itc').
    """

    heat: np.ndarray
    words: list[str]
    word_heat: np.ndarray
    score: float


def make_explainer(model, mode, layer=-1):
    """A compiled function of params, images, ids and masks: heat of texts, of tokens, and scores.

    Args:
      model: an `Albef`. mode: 'itm' or 'itc'.
      layer: as in `gradcam`; -1: its default.

    Raises:
      UserError: there is no such mode or layer.
    """
    if mode not in MODES:
        raise UserError(f"The mode {mode!r} is unknown; choose 'itm' (the matching head) or 'itc' "
                        "(the similarity).")

    def itm(params, *rows):
        tokens, logits_b2 = gradcam.itm_heat(model, params, *rows, layer=layer)
        return tokens.mean(axis=1), tokens, jax.nn.softmax(logits_b2)[:, 1]

    def itc(params, *rows):
        heat, scaled_b = gradcam.itc_heat(model, params, *rows, block=layer)
        return heat, None, scaled_b * params["temp"]

    return jax.jit(itm if mode == "itm" else itc)


def explanation(result, row, ids_l, tokenizer):
    """One row of an explainer's result, word pieces joined to words."""
    heat, tokens, scores = result
    words, numbers = join_pieces(ids_l, tokenizer)
    if tokens is None:
        words = []
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


def draw(picture, explained, text):
    """The picture, the heat of the whole text, and of each word, on one sheet.

    Every map has its own scale of colours; the number says how hot a word is at most, in percent
    of the hottest one.
    """
    picture = scaled(picture, SIDE)
    tiles = [(picture, text), (overlay(picture, explained.heat), f"all: {explained.score:.2f}")]
    tiles += [(overlay(picture, heat), f"{word} {100 * share:.0f}%") for word, heat, share in zip(
        explained.words, explained.word_heat, word_shares(explained))]
    width, height = picture.width + GAP, picture.height + GAP + LABEL
    rows = -(-len(tiles) // PER_ROW)
    sheet = Image.new("RGB", (min(len(tiles), PER_ROW) * width + GAP, rows * height + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (tile, label) in enumerate(tiles):
        row, column = divmod(number, PER_ROW)
        x, y = GAP + column * width, GAP + row * height
        sheet.paste(tile, (x, y))
        while label and pen.textlength(label, font) > picture.width:
            label = label.removesuffix("…")[:-1] + "…"
        pen.text((x, y + picture.height + 4), label, "black", font)
    return sheet
