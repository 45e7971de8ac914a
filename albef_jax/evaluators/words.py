"""Words that are hidden in held-out texts, and what a model guesses them to be."""

import functools

import jax
import numpy as np

from albef_jax.data.text import PREFIX
from albef_jax.errors import UserError
from albef_jax.evaluators.queries import QUERIES, SHOWN, spread

MASK_RATE = 0.15
MAX_MASKED = 2  # words of a caption that is shown


def draw_masked(ids_bl, special_ids, rng):
    """Positions to mask, bool `[b, l]`: 15% of the tokens that are not special."""
    return (rng.random(ids_bl.shape) < MASK_RATE) & ~np.isin(ids_bl, special_ids)


def word_ids(words, tokenizer):
    """The token of each word; UserError if one is not a single token of the vocabulary."""
    ids, mask = tokenizer.encode(words, 3)  # [CLS], and room to see that there are two pieces
    unknown = tokenizer.special_ids[1]
    for word, row, length in zip(words, ids, mask.sum(axis=1)):
        if length != 2 or row[1] == unknown:
            raise UserError(f"The evals block of kind 'masked' asks for the word {word!r}, which "
                            "is not one token of the vocabulary; leave it out of words.")
    return ids[:, 1]


def hidden_words(forward, teacher, data, tokenizer, seed, chosen=()):
    """Masked words of captions with the guesses of the model and its teacher.

    Args:
      forward, teacher: a `Forward` each, the second may be None. data: a `HeldOut`.
      seed: of the masks. chosen: tokens that may be shown; (): all with a known word.

    Returns:
      list of dicts: `picture`, `pieces` of the caption (dicts with `text`, `space` before it,
      `masked`), `guesses`, a dict per masked word: the `word`, and of `model` and `teacher` the
      likeliest words, dicts with `text`, `share`, `right`. Empty if no caption has as few masked
      words as are shown.
    """
    masked = draw_masked(data.text_ids, tokenizer.special_ids, np.random.default_rng(seed))
    if len(chosen):
        masked &= np.isin(data.text_ids, chosen)
    count = masked.sum(axis=1)
    fitting = np.flatnonzero((1 <= count) & (count <= MAX_MASKED))
    if not len(fitting):
        return []
    texts = fitting[spread(len(fitting), QUERIES)]
    images, masked, truth = data.text_image[texts], masked[texts], data.text_ids[texts]
    ids = np.where(masked, tokenizer.mask_id, truth)

    def likeliest(model):
        embeds = data.encode_images(model)[0][images]
        return jax.device_get(model.compiled(top_words(model["mlm_logits"]))(
            model.params, image_embeds=embeds, masked_ids=ids, text_mask=data.text_mask[texts]))

    sides = {"model": likeliest(forward)} | ({"teacher": likeliest(teacher)} if teacher else {})

    def guesses(side, row, at):
        shares, words = (array[row, at] for array in sides[side])
        return [{"text": tokenizer.decode([word]) or "[UNK]", "share": float(share),
                 "right": bool(word == truth[row, at])} for share, word in zip(shares, words)]

    return [{"picture": data.picture(image),
             "pieces": pieces(truth[row], masked[row], tokenizer),
             "guesses": [{"word": tokenizer.decode([truth[row, at]]),
                          **{side: guesses(side, row, at) for side in sides}}
                         for at in np.flatnonzero(masked[row])]}
            for row, image in enumerate(images)]


def pieces(ids_l, masked_l, tokenizer):
    """A caption piece by piece: text, whether a space comes before it, whether it is masked."""
    texts = [(tokenizer.decode([word]), masked) for word, masked in zip(ids_l, masked_l)]
    return [{"text": text.removeprefix(PREFIX), "space": not text.startswith(PREFIX),
             "masked": bool(masked)} for text, masked in texts if text]


@functools.lru_cache(maxsize=64)
def top_words(mlm_logits):
    """The likeliest words: probabilities and ids `[b, l, SHOWN]`, as `mlm_logits` is called."""
    def likeliest(params, image_embeds, masked_ids, text_mask):
        logits = mlm_logits(params, image_embeds=image_embeds, masked_ids=masked_ids,
                            text_mask=text_mask)
        return jax.lax.top_k(jax.nn.softmax(logits), SHOWN)

    return likeliest
