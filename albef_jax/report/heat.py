"""Where the model looks for the words of a few held-out texts: Grad-CAM pictures."""

from PIL import ImageDraw

from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.sources import make_source
from albef_jax.inference.explain import (
    explanation,
    make_explainer,
    overlay,
    scaled,
    word_shares,
)
from albef_jax.report.examples import data_uri, spread
from albef_jax.weights.foreign.kinds import kind_of

EXAMPLES = 5
WORDS = 10  # of a text; of a longer one those of most heat
SIDE = 120  # pixels of the longer side


def find_heat(config, tokenizer, params):
    """Heat maps of a few examples of the first grounding evaluator's data, else retrieval's.

    Returns:
      dicts with `picture`, `heat` (of the whole text, with the box where there is one), `text`,
      `score` (probability of a match) and `words` (dicts with `text`, `picture`, `share` of the
      hottest word); pictures are data URIs. None if there is no such evaluator.

    Raises:
      UserError: the held-out data cannot be read.
    """
    blocks = [block for kind in ("grounding", "retrieval") for block in config.evals.values()
              if block.get("kind") == kind]
    if not blocks:
        return None
    data = EvalRows(make_source(blocks[0]["source"]), tokenizer, config.data)
    examples = spread(len(data), EXAMPLES)
    rows = data.some(examples)
    result = make_explainer(kind_of(config.task).module(config.model), "itm")(params, *rows)
    return [picture_row(data, example, explanation(result, row, rows[1][row], tokenizer))
            for row, example in enumerate(examples)]


def picture_row(data, example, explained):
    """One example as plain values for the page."""
    (picture,) = data.pictures(example)
    picture = scaled(picture, SIDE)
    heat = overlay(picture, explained.heat)
    if "box" in data.source.fields:
        across, down = (new / old for new, old in zip(heat.size, data.source.size(example)))
        x, y, w, h = data.source.box(example)
        corners = x * across, y * down, (x + w) * across - 1, (y + h) * down - 1
        ImageDraw.Draw(heat).rectangle(corners, outline="white", width=2)
    shares = word_shares(explained)
    shown = sorted((-shares).argsort(kind="stable")[:WORDS])
    words = [{"text": explained.words[i], "share": float(shares[i]),
              "picture": data_uri(overlay(picture, explained.word_heat[i]))} for i in shown]
    return {"picture": data_uri(picture), "heat": data_uri(heat), "text": data.texts[example],
            "score": explained.score, "words": words}
