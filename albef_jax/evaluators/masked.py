"""Accuracy of masked language modelling on held-out captions, given their images."""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.errors import UserError
from albef_jax.evaluators.held_out import HeldOut

MASK_RATE = 0.15
DEPTHS = (1, 5)


class MaskedEvaluator:
    """Top-1 and top-5 accuracy of the original token, in percent of the masked positions.

    15% of the words of every held-out caption are replaced by [MASK], always the same ones for a
    seed. Yields `mlm_top1` and `mlm_top5`; with `words`, say the colours that only the image can
    tell, also `mlm_top1_words`, over the masked tokens that are one of these words.
    """

    fields = HeldOut.fields | {"words": ((), None)}

    def __init__(self, source, settings, data_config, tokenizer, seed):
        self._held_out = data = HeldOut(source, settings, data_config, tokenizer)
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
        self._masked = draw_masked(data.text_ids, special, np.random.default_rng(seed))
        self._masked_ids = np.where(self._masked, tokenizer.mask_id, data.text_ids)
        if not self._masked.any():
            raise UserError("The evals block of kind 'masked' has too few words to mask any; "
                            "give its source more captions, or raise max_images.")
        self._is_word = np.isin(data.text_ids, word_ids(settings["words"], tokenizer))
        if settings["words"] and not (self._masked & self._is_word).any():
            raise UserError("The evals block of kind 'masked' masks none of its words; give its "
                            "source more captions, or other words.")
        self._per_image = -(-len(data.text_ids) // data.num_images)
        self.description = f"{self._masked.sum()} masked tokens in {len(data.text_ids)} captions"

    def run(self, params, predict_fns, mesh):
        """Yields (name, percent)."""
        data = self._held_out
        data.bind(predict_fns, mesh, hits(predict_fns["mlm_logits"]))
        image_embeds, _ = data.encode_images(params)
        sets = np.stack([self._masked, self._masked & self._is_word], axis=-1)
        texts = dict(text_ids=data.text_ids, sets=sets, masked_ids=self._masked_ids,
                     text_mask=data.text_mask)
        rows = np.arange(len(data.text_ids))
        found = data.score_pairs(params, image_embeds, data.text_image, rows, texts,
                                 per_image=self._per_image).sum(axis=0)
        (all_masked, words), (of_all, of_words) = sets.sum(axis=(0, 1)), found.T
        for depth, count in zip(DEPTHS, of_all):
            yield f"mlm_top{depth}", 100 * int(count) / int(all_masked)
        if words:
            yield "mlm_top1_words", 100 * int(of_words[0]) / int(words)


def draw_masked(ids_bl, special_ids, rng):
    """Positions to mask, bool `[b, l]`: 15% of the tokens that are not special."""
    return (rng.random(ids_bl.shape) < MASK_RATE) & ~np.isin(ids_bl, special_ids)


def word_ids(words, tokenizer):
    """The token of each word.

    Raises:
      UserError: a word is not one token of the vocabulary.
    """
    ids, mask = tokenizer.encode(words, 3)  # [CLS], and room to see that there are two pieces
    unknown = tokenizer.special_ids[1]
    for word, row, length in zip(words, ids, mask.sum(axis=1)):
        if length != 2 or row[1] == unknown:
            raise UserError(f"The evals block of kind 'masked' asks for the word {word!r}, which "
                            "is not one token of the vocabulary; leave it out of words.")
    return ids[:, 1]


def hits(mlm_logits):
    """The pair function of blocks: tokens of each set found at depth 1 and 5.

    It maps sets of positions, bool `[g, s, l, k]`, to counts, int32 `[g, s, 2, k]`. Tokens with an
    equal or undefined logit count as better: a constant prediction finds nothing.
    """

    def hits_of_slot(params, image_embeds, text_ids, sets, masked_ids, text_mask):
        logits = mlm_logits(params, image_embeds, masked_ids, text_mask)
        target = jnp.take_along_axis(logits, text_ids[..., None], axis=-1)
        ranks = logits.shape[-1] - 1 - jnp.sum(logits < target, axis=-1)
        found = ranks[:, None, :, None] < jnp.array(DEPTHS)[:, None, None]
        return jnp.sum(sets[:, None] & found, axis=2)

    return jax.vmap(hits_of_slot, in_axes=(None, None, 1, 1, 1, 1), out_axes=1)
