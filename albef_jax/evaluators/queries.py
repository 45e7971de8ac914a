"""A few queries with what is found for them, as the page about a run shows them.

They are spread evenly over the held-out set: nothing is picked for looking good.
"""

import jax
import numpy as np

from albef_jax.evaluators.recall import UNSCORED, candidates, ranks

QUERIES = 6  # of each kind
SHOWN = 5  # images, texts or words


def queries(forward, data, k, sims):
    """Images found for captions, and captions found for images: the best k re-ranked.

    Args:
      forward: a `Forward`. data: a `HeldOut`. sims: float `[n, m]`, by which the k are chosen.

    Returns:
      dict: `text_queries` has `k`, `images` (how many there are to choose from) and `queries`, a
      list of dicts: `caption`, `found` (best first, dicts with `picture`, `score`, `right`),
      `place` of the right answer from 1, None if it is not among the candidates, and `answer`, the
      right one where it is not among the found. `image_queries` the other way round: `texts`, a
      `picture`, and `text` of what is found.
    """
    rows = spread(data.num_images, 2 * QUERIES)
    captions = [int(np.argmax(data.text_image == row)) for row in rows[::2]]
    images = rows[1::2]
    for_text, for_image = np.zeros(sims.shape, bool), np.zeros(sims.shape, bool)
    for_text[:, captions] = candidates(sims[:, captions].T, k).T
    for_image[images] = candidates(sims[images], k)
    match = data.match_scores(forward, for_text | for_image)
    score_t2i = np.where(for_text, match, UNSCORED).T
    score_i2t = np.where(for_image, match, UNSCORED)
    return {
        "text_queries": {"k": k, "images": data.num_images, "queries": [
            text_query(data, text, score_t2i[text]) for text in captions]},
        "image_queries": {"k": k, "texts": len(data.texts), "queries": [
            image_query(data, image, score_i2t[image]) for image in images]}}


def text_query(data, text, scores):
    """What is found for a text; see `queries`."""
    image = data.text_image[text]
    found = [{"picture": data.picture(row), "score": float(scores[row]),
              "right": bool(row == image)} for row in best(scores) if scores[row] != UNSCORED]
    place = place_of(scores, image) if scores[image] != UNSCORED else None
    answer = None if any(item["right"] for item in found) else data.picture(image)
    return {"caption": data.texts[text], "found": found, "place": place, "answer": answer}


def image_query(data, image, scores):
    """What is found for an image; see `queries`."""
    own = data.text_image == image
    found = [{"text": data.texts[text], "score": float(scores[text]), "right": bool(own[text])}
             for text in best(scores) if scores[text] != UNSCORED]
    places = [place_of(scores, text) for text in np.flatnonzero(own & (scores != UNSCORED))]
    answer = None if any(item["right"] for item in found) else data.texts[own.argmax()]
    return {"picture": data.picture(image), "found": found,
            "place": min(places, default=None), "answer": answer}


def pseudo_targets(forward, teacher, data):
    """The captions that the teacher's ITC distribution favours (section 3.3, figure 2).

    Returns:
      dict: `texts`, how many there are, and `images`, a list of dicts: `picture`, its first own
      `caption`, `found` (likeliest first, dicts with `text`, `share`, `right`).
    """
    temperature = float(jax.device_get(forward.params["temp"]))
    images = spread(data.num_images, QUERIES)
    logits = data.encode_images(teacher)[1][images] @ data.encode_texts(teacher)[1].T / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return {"texts": len(data.texts), "images": [
        {"picture": data.picture(image),
         "caption": data.texts[int(np.argmax(data.text_image == image))],
         "found": [{"text": data.texts[text], "share": float(share[text]),
                    "right": bool(data.text_image[text] == image)} for text in best(share)]}
        for image, share in zip(images, shares)]}


def spread(size, count):
    """At most `count` different rows of `size`, evenly apart."""
    centres = (np.arange(count) + 0.5) * size / count
    return list(dict.fromkeys(int(centre) for centre in centres)) if size else []


def place_of(scores_c, target):
    """The place of a column from 1, see `recall.ranks`."""
    return int(ranks(scores_c[None], np.array([target]))[0]) + 1


def best(scores_c):
    """The `SHOWN` columns of highest score, in the order of `recall.ranks`."""
    comparable = np.where(np.isnan(scores_c), -np.inf, scores_c)
    return np.argsort(comparable, kind="stable")[::-1][:SHOWN]
