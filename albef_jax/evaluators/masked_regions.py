"""Hidden words and hidden regions of held-out pairs, guessed by a model that reads both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.batches import Rows
from albef_jax.evaluators.queries import QUERIES, SHOWN, spread
from albef_jax.evaluators.words import MASK_RATE, MAX_MASKED, pieces

DEPTHS = (1, 5)
SIDE = 384  # pixels of the longer side of a picture that regions are drawn on
OTHERS, HIDDEN = "#ffffff", "#ff3b6b"  # colours of boxes
MIXED = 2654435761  # spreads sums of ids over the numbers of 32 bits


class MaskedRegionsEvaluator(Evaluator):
    """Top-1 and top-5 accuracy of hidden words, and of the classes of hidden regions, in percent.

    15% of the words of every pair are replaced by [MASK] while all regions are seen, and 15% of its
    regions by zeros while all words are seen; always the same ones of a pair for a seed. Yields
    `mlm_top1`, `mlm_top5`, `moc_top1` and `moc_top5`. Regions without a class are not counted.
    """

    options = Rows.options
    calls = ("words", "objects")
    asks = ("text", "regions")
    labels = {"mlm_top1": "masked words, top 1", "mlm_top5": "masked words, top 5",
              "moc_top1": "masked regions, top 1", "moc_top5": "masked regions, top 5"}
    headline = {"mlm_top1": "masked words right"}
    charts = (Chart("Masked words and regions, %",
                    {"mlm_top1": "words, top 1", "moc_top1": "regions, top 1"}, top=100, colour=2),)

    def __init__(self, *args):
        super().__init__(*args)
        self._rows = Rows(self)
        self.description = f"{len(self._rows)} pairs"

    def names(self):
        return [f"{task}_top{depth}" for task in ("mlm", "moc") for depth in DEPTHS]

    def run(self, forward):
        tokenizer = self.tokenizer
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
        counted = self._rows.run(forward, hits(
            forward["words"], forward["objects"], tokenizer.mask_id, special, self.config.seed),
            "words and regions")
        for task, (found_nd, hidden_n) in counted.items():
            for depth, found in zip(DEPTHS, found_nd.sum(axis=0).tolist()):
                yield f"{task}_top{depth}", 100 * found / max(int(hidden_n.sum()), 1)

    def beneath(self, name, values):
        return ["first guess of the whole vocabulary"]

    def examples(self, forward, teacher):
        """A few pairs with a region and up to two words hidden, and what they are taken for."""
        del teacher
        chosen = spread(len(self._rows), QUERIES)
        arrays = self._rows.data.some(chosen)
        rng = np.random.default_rng(self.config.seed)
        words = self._hidden_words(arrays["text_ids"], rng)
        # The surest region that has a class; the first one where none has.
        region_b = np.argmax(arrays["regions_class"] >= 0, axis=1)
        hidden = np.arange(arrays["regions"].shape[1]) == region_b[:, None]
        shown = guesses(forward["words"], forward["objects"])
        texts, objects = jax.device_get(forward.compiled(shown)(
            forward.params, masked_ids=np.where(words, self.tokenizer.mask_id, arrays["text_ids"]),
            hidden=hidden, **arrays))
        return {"regions": [self._shown(row, example, arrays, words, region_b, texts, objects)
                            for row, example in enumerate(chosen)]}

    def _hidden_words(self, ids, rng):
        """Up to two words of each text, bool `[b, l]`."""
        drawn = np.where(np.isin(ids, self.tokenizer.special_ids), -1, rng.random(ids.shape))
        least = np.sort(drawn, axis=1)[:, -MAX_MASKED][:, None]
        return (drawn >= least) & (drawn >= 0)

    def _shown(self, row, example, arrays, words, region_b, texts, objects):
        names = self.source.fields["regions"].get("class_names")
        label = int(arrays["regions_class"][row, region_b[row]])

        def named(number):
            return names[number] if names else f"class {number}"

        def likeliest(found, at, text, right):
            return [{"text": text(int(number)), "share": float(share),
                     "right": int(number) == right}
                    for share, number in zip(found[0][row, at], found[1][row, at])]

        def word(number):
            return self.tokenizer.decode([number]) or "[UNK]"

        ids = arrays["text_ids"][row]
        return {"picture": drawn_boxes(self._picture(example), arrays["regions_box"][row],
                                       arrays["regions_mask"][row], region_b[row]),
                "label": named(label) if label >= 0 else "no class",
                "classes": likeliest(objects, region_b[row], named, label),
                "pieces": pieces(ids, words[row], self.tokenizer),
                "guesses": [{"word": word(ids[at]), "model": likeliest(texts, at, word, ids[at])}
                            for at in np.flatnonzero(words[row])]}

    def _picture(self, example):
        """The image, or where the source has none an empty one."""
        if "image" in self.source.fields:
            return self._rows.data.pictures(example)[0]
        return Image.new("RGB", (SIDE, SIDE), "#808080")


def drawn_boxes(image, box_n5, mask_n, hidden):
    """The image with the boxes of its regions, one of them in another colour.

    Args:
      box_n5: shares of width and height, see `RegionsField`. mask_n: of which regions there are.
    """
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    draw = ImageDraw.Draw(image)
    order = [number for number in np.flatnonzero(mask_n) if number != hidden] + [hidden]
    for number in order:
        corners = np.reshape(box_n5[number, :4], (2, 2)) * image.size
        draw.rectangle([tuple(corner) for corner in corners.tolist()], width=6 if number == hidden
                       else 2, outline=HIDDEN if number == hidden else OTHERS)
    return image


@functools.lru_cache(maxsize=64)
def hits(words, objects, mask_id, special_ids, seed):
    """The function of a batch that counts what is found of hidden words and regions.

    It gives by task what was found at each of `DEPTHS`, int32 `[b, 2]`, and what was hidden,
    `[b]`. A guess with an equal or undefined logit counts as better: a constant finds nothing.
    """
    def count(params, **arrays):
        ids, there = arrays["text_ids"], arrays["regions_mask"] > 0
        places = jnp.arange(1, ids.shape[1] + 1, dtype=jnp.uint32)
        spread_b = jnp.sum(ids.astype(jnp.uint32) * places, axis=1) * jnp.uint32(MIXED)
        keys = jax.vmap(lambda number: jax.random.split(
            jax.random.fold_in(jax.random.key(seed), number)))(spread_b)

        def drawn(which, shape):
            return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys[:, which]) < MASK_RATE

        inner = ~jnp.isin(ids, jnp.array(special_ids)) & (arrays["text_mask"] > 0)
        hidden_words = drawn(0, ids.shape[1:]) & inner
        hidden = drawn(1, there.shape[1:]) & there
        logits = words(params, **arrays | {"text_ids": jnp.where(hidden_words, mask_id, ids)})
        classes, _ = objects(params, **arrays | {
            "regions": jnp.where(hidden[..., None], 0, arrays["regions"])})
        known = hidden & (arrays["regions_class"] >= 0)
        return {"mlm": found_of(logits, ids, hidden_words),
                "moc": found_of(classes, jnp.maximum(arrays["regions_class"], 0), known)}

    return count


def found_of(logits_blk, labels_bl, counted_bl):
    """How many labels are among the likeliest: int32 `[b, depths]`, and how many count, `[b]`."""
    target = jnp.take_along_axis(logits_blk, labels_bl[..., None], axis=-1)
    rank_bl = logits_blk.shape[-1] - 1 - jnp.sum(logits_blk < target, axis=-1)
    found = (rank_bl[..., None] < jnp.array(DEPTHS)) & counted_bl[..., None]
    return jnp.sum(found, axis=1), jnp.sum(counted_bl, axis=1)


@functools.lru_cache(maxsize=64)
def guesses(words, objects):
    """The likeliest words and classes of a batch: probabilities and numbers `[b, l, SHOWN]` each.

    `masked_ids` stand for the text, and regions in `hidden` are zeros.
    """
    def likeliest(params, masked_ids, hidden, **arrays):
        logits = words(params, **arrays | {"text_ids": masked_ids})
        classes, _ = objects(params, **arrays | {
            "regions": jnp.where(hidden[..., None], 0, arrays["regions"])})
        return tuple(jax.lax.top_k(jax.nn.softmax(x.astype(jnp.float32)),
                                   min(SHOWN, x.shape[-1])) for x in (logits, classes))

    return likeliest
