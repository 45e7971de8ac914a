"""Accuracy of masked language modelling on held-out captions, given their images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.base import Chart, Evaluator
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.pairs import score_pairs
from albef_jax.evaluators.words import draw_masked, hidden_words, masked_words, word_ids

DEPTHS = (1, 5)
SHOWN_IMAGES = 512  # at most, whose captions the page chooses from


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
        self._masked = draw_masked(ids, special, np.random.default_rng(self.config.seed))
        self._masked_ids = np.where(self._masked, tokenizer.mask_id, ids)
        if not self._masked.any():
            raise UserError("The evals block of kind 'masked' has too few words to mask any; "
                            "give its source more captions, or raise max_images.")
        self._word_ids = word_ids(self.settings["words"], tokenizer)
        self._is_word = np.isin(ids, self._word_ids)
        if self.settings["words"] and not (self._masked & self._is_word).any():
            raise UserError("The evals block of kind 'masked' masks none of its words; give its "
                            "source more captions, or other words.")
        self._per_image = -(-len(ids) // self._held_out.num_images)
        self.description = f"{self._masked.sum()} masked tokens in {len(ids)} captions"

    def names(self):
        """See `Evaluator.names`."""
        words = ["mlm_top1_words"] if self.settings["words"] else []
        return [*(f"mlm_top{depth}" for depth in DEPTHS), *words]

    def run(self, forward):
        """Yields (name, percent)."""
        data = self._held_out
        image_embeds, _ = data.encode_images(forward)
        sets = np.stack([self._masked, self._masked & self._is_word], axis=-1)
        texts = dict(text_ids=data.text_ids, sets=sets, masked_ids=self._masked_ids,
                     text_mask=data.text_mask)
        found = score_pairs(forward, hits(forward["mlm_logits"]), image_embeds, texts,
                            data.text_image, np.arange(len(data.texts)), data.batch_size,
                            self._per_image, "words").sum(axis=0)
        (all_masked, words), (of_all, of_words) = sets.sum(axis=(0, 1)), found.T
        for depth, count in zip(DEPTHS, of_all):
            yield f"mlm_top{depth}", 100 * int(count) / int(all_masked)
        if words:
            yield "mlm_top1_words", 100 * int(of_words[0]) / int(words)

    def beneath(self, name, values):
        """See `Evaluator.beneath`."""
        return ["first guess of the whole vocabulary"]

    def examples(self, forward, teacher):
        """Captions with hidden words, the chosen ones if there are any."""
        data = self._held_out.first(SHOWN_IMAGES)
        masked = masked_words(data.text_ids, self.tokenizer, self.config.seed)
        if self.settings["words"]:
            masked &= np.isin(data.text_ids, self._word_ids)
        return {"words": hidden_words(forward, teacher, data, masked, self.tokenizer)}


@functools.lru_cache(maxsize=64)
def hits(mlm_logits):
    """The function of blocks for `score_pairs`: tokens of each set found at depth 1 and 5.

    It maps sets of positions, bool `[g, s, l, k]`, to counts, int32 `[g, s, 2, k]`. Tokens with an
    equal or undefined logit count as better: a constant prediction finds nothing.
    """
    def of_blocks(params, image_embeds, text_ids, sets, masked_ids, text_mask):
        def of_slot(text_ids, sets, masked_ids, text_mask):
            logits = mlm_logits(params, image_embeds=image_embeds, masked_ids=masked_ids,
                                text_mask=text_mask)
            target = jnp.take_along_axis(logits, text_ids[..., None], axis=-1)
            ranks = logits.shape[-1] - 1 - jnp.sum(logits < target, axis=-1)
            found = ranks[:, None, :, None] < jnp.array(DEPTHS)[:, None, None]
            return jnp.sum(sets[:, None] & found, axis=2)

        return jax.vmap(of_slot, in_axes=1, out_axes=1)(text_ids, sets, masked_ids, text_mask)

    return of_blocks
