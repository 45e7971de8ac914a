"""Products as the page about a run shows them: what they have, and what a model says of a few."""

import jax
import numpy as np

from albef_jax.data.images.pillow import BrokenImage, decode, open_image
from albef_jax.data.table import parse_table
from albef_jax.evaluators.queries import SHOWN
from albef_jax.models.scale import FEATURES, MODALITIES

MASK_AT_MOST = 3  # words of a value that is guessed


def card(source, row):
    """A product for people.

    Returns:
      dict: `name`; `title` and `picture`, None where there is none; `table`, pairs of texts without
      those that lack one; `has`, the names of its modalities.
    """
    titles = source.get(row, "title") if "title" in source.modalities(row) else []
    return {"name": source.name(row), "title": titles[0] if titles else None,
            "picture": picture(source, row), "table": table_of(source, row),
            "has": list(source.modalities(row))}


def table_of(source, row):
    """The pairs of a product's table that have both a property and a value, as they are encoded."""
    raw = source.get(row, "table") if "table" in source.modalities(row) else None
    return [pair for pair in parse_table(raw) if all(pair)]


def picture(source, row):
    """A Pillow image; None where the source knows none, or it cannot be read."""
    pixels = source.picture(row) if hasattr(source, "picture") else None
    try:
        return None if pixels is None else decode(open_image(pixels))
    except BrokenImage:
        return None


def trust(forward, arrays, letters):
    """S'' of some products, as they are and with one modality taken from the product before.

    Args:
      arrays: `[b, ...]` by name, of a batch of products. letters: of the model's modalities.

    Returns:
      The letter of what is taken from elsewhere, and S'' before and after, lists `[b][m][m]`; of a
      model without scores None instead.
    """
    swapped = next((letter for letter in letters if letter in FEATURES), letters[-1])
    name = MODALITIES[swapped]
    # `NAME` and `NAME_...`; every product gets what another has, or lacks.
    elsewhere = {key: np.roll(array, 1, axis=0) for key, array in arrays.items()
                 if key.partition("_")[0] == name}
    encode = forward.compiled(forward["encode"])
    both = [jax.device_get(encode(forward.params, **seen))
            for seen in (arrays, {**arrays, **elsewhere})]
    scores = [found.get("scores_contrast", found.get("scores")) for found in both]
    return swapped, *(None if one is None else one.tolist() for one in scores)


def guessed_entities(forward, arrays, tokenizer, tables):
    """A value of each product's table hidden, and the words that the model guesses.

    Args:
      arrays: `[b, ...]` by name, of a batch of products. tables: their pairs of texts.

    Returns:
      list with a dict for each product, None where no value is short enough: `pair`, the number of
      the pair; and `guesses`, a dict per word: the `word`, and of `model` the likeliest words,
      dicts with `text`, `share`, `right`.
    """
    ids_bl, entity_bl = arrays["table_ids"], arrays["table_entity"]
    chosen = [hidden_pair(entities, len(table), row)
              for row, (entities, table) in enumerate(zip(entity_bl, tables))]
    hidden_bl = entity_bl == np.array([[-1 if pair is None else 2 * pair + 2] for pair in chosen])
    masked = {**arrays, "table_ids": np.where(hidden_bl, tokenizer.mask_id, ids_bl)}

    def likeliest(params, **seen):
        logits = forward["words"](params, **seen)["table"]
        return jax.lax.top_k(jax.nn.softmax(logits), SHOWN)

    shares, words = jax.device_get(jax.jit(likeliest)(forward.params, **masked))

    def guesses(row, at):
        return {"word": tokenizer.decode([ids_bl[row, at]]), "model": [
            {"text": tokenizer.decode([word]) or "[UNK]", "share": float(share),
             "right": bool(word == ids_bl[row, at])}
            for share, word in zip(shares[row, at], words[row, at])]}

    return [None if pair is None else {
        "pair": pair, "guesses": [guesses(row, at) for at in np.flatnonzero(hidden_bl[row])]}
        for row, pair in enumerate(chosen)]


def hidden_pair(entities, pairs, turn):
    """The number of a pair whose value is whole and short, another one each turn; None: no such."""
    last = int(entities.max())  # the only one that may have been cut, if it is not the last of all
    fits = [pair for pair in range(pairs)
            if (2 * pair + 2 < last or last == 2 * pairs and entities[-1] != last)
            and 1 <= np.sum(entities == 2 * pair + 2) <= MASK_AT_MOST]
    return fits[turn % len(fits)] if fits else None
