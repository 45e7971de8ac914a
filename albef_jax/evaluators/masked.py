"""Accuracy of masked language modelling on held-out captions, given their images."""

import functools

import jax.numpy as jnp
import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.pairs import score_pairs
from albef_jax.evaluators.queries import SHOWN_IMAGES
from albef_jax.evaluators.words import draw_masked, hidden_words, word_ids

DEPTHS = (1, 5)


class MaskedEvaluator(Evaluator):
    """Top-1 and top-5 accuracy of the original token, in percent of the masked positions.

    15% of the words of every held-out caption are replaced by [MASK], always the same ones for a
    seed. Yields `mlm_top1` and `mlm_top5`; with `words`, say the colours that only the image can
    tell, also `mlm_top1_words`, over the masked tokens that are one of these words.
    """

    options = HeldOut.options | {"words": ((), None)}
    calls = ("encode_image", "mlm_logits")
    asks = ("image", "text", "image_id")
    labels = {"mlm_top1": "masked words, top 1", "mlm_top5": "masked words, top 5",
              "mlm_top1_words": "chosen words, top 1"}
    headline = {"mlm_top1": "masked words right"}
    charts = (Chart("Matching and masked words, %",
                    {"mlm_top1": "words, top 1", "mlm_top5": "top 5"}, top=100, colour=2),)

    def __init__(self, *args):
        super().__init__(*args)
        self._held_out, tokenizer = HeldOut.of(self), self.tokenizer
        ids = self._held_out.text_ids
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
        masked = draw_masked(ids, special, np.random.default_rng(self.config.seed))
        self._masked_ids = np.where(masked, tokenizer.mask_id, ids)
        self._word_ids = word_ids(self.settings["words"], tokenizer)
        # What is counted, bool `[m, l, 2]`: all, and the chosen words.
        self._sets = np.stack([masked, masked & np.isin(ids, self._word_ids)], axis=-1)
        self._counts = self._sets.sum(axis=(0, 1)).tolist()
        if not self._counts[0]:
            raise UserError("The evals block of kind 'masked' has too few words to mask any; "
                            "give its source more captions, or raise max_images.")
        if self.settings["words"] and not self._counts[1]:
            raise UserError("The evals block of kind 'masked' masks none of its words; give its "
                            "source more captions, or other words.")
        self._per_image = -(-len(ids) // self._held_out.num_images)
        self.description = f"{self._counts[0]} masked tokens in {len(ids)} captions"

    def names(self):
        words = ["mlm_top1_words"] if self.settings["words"] else []
        return [*(f"mlm_top{depth}" for depth in DEPTHS), *words]

    def run(self, forward):
        data = self._held_out
        image_embeds, _ = data.encode_images(forward)
        texts = dict(text_ids=data.text_ids, sets=self._sets, masked_ids=self._masked_ids,
                     text_mask=data.text_mask)
        found = score_pairs(forward, hits(forward["mlm_logits"]), image_embeds, texts,
                            data.text_image, np.arange(len(data.texts)), data.batch_size,
                            self._per_image, "words").sum(axis=0)
        (of_all, of_words), (all_masked, words) = found.T.tolist(), self._counts
        for depth, count in zip(DEPTHS, of_all):
            yield f"mlm_top{depth}", 100 * count / all_masked
        if words:
            yield "mlm_top1_words", 100 * of_words[0] / words

    def beneath(self, name, values):
        return ["first guess of the whole vocabulary"]

    def examples(self, forward, teacher):
        data = self._held_out.first(SHOWN_IMAGES)
        return {"words": hidden_words(forward, teacher, data, self.tokenizer, self.config.seed,
                                      self._word_ids)}


@functools.lru_cache(maxsize=64)
def hits(mlm_logits):
    """The function for `score_pairs` that counts the tokens of each set found at depth 1 and 5.

    It maps sets of positions, bool `[g, l, k]`, to counts, int32 `[g, 2, k]`. Tokens with an equal
    or undefined logit count as better: a constant prediction finds nothing.
    """
    def count(params, image_embeds, text_ids, sets, masked_ids, text_mask):
        logits = mlm_logits(params, image_embeds=image_embeds, masked_ids=masked_ids,
                            text_mask=text_mask)
        target = jnp.take_along_axis(logits, text_ids[..., None], axis=-1)
        ranks = logits.shape[-1] - 1 - jnp.sum(logits < target, axis=-1)
        found = ranks[:, None, :, None] < jnp.array(DEPTHS)[:, None, None]
        return jnp.sum(sets[:, None] & found, axis=2)

    return count
