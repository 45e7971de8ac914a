"""A few queries, evenly over the held-out set and none picked for looking good; what they find."""

import jax
import numpy as np

from albef_jax.evaluators.recall import UNSCORED, candidates, ranks

QUERIES = 6  # of each kind
SHOWN = 5  # images, texts or words
SHOWN_IMAGES = 512  # at most, that the page chooses from


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
    rows, texts = spread(data.num_images, 2 * QUERIES), data.texts
    captions = [first_text(data, row) for row in rows[::2]]
    images = rows[1::2]
    for_text, for_image = np.zeros(sims.shape, bool), np.zeros(sims.shape, bool)
    for_text[:, captions] = candidates(sims[:, captions].T, k).T
    for_image[images] = candidates(sims[images], k)
    match, every = data.match_scores(forward, for_text | for_image), np.arange(data.num_images)
    score_t2i = np.where(for_text, match, UNSCORED).T
    score_i2t = np.where(for_image, match, UNSCORED)
    return {
        "text_queries": {"k": k, "images": data.num_images, "queries": [
            {"caption": texts[text]} | answered(
                score_t2i[text], every == data.text_image[text], "picture", data.picture)
            for text in captions]},
        "image_queries": {"k": k, "texts": len(texts), "queries": [
            {"picture": data.picture(image)} | answered(
                score_i2t[image], data.text_image == image, "text", texts.__getitem__)
            for image in images]}}


def answered(scores_c, right_c, kind, show):
    """What is found for one query; see `queries`.

    Args:
      scores_c: of all columns, `UNSCORED` of those that are no candidates. right_c: bool `[c]`.
      kind: 'picture' or 'text', as which `show` gives a column.
    """
    scored = scores_c != UNSCORED
    found, right = [c for c in best(scores_c) if scored[c]], np.flatnonzero(right_c & scored)
    places = ranks(np.tile(scores_c, (len(right), 1)), right) + 1
    return {"found": [{kind: show(c), "score": float(scores_c[c]), "right": bool(right_c[c])}
                      for c in found],
            "place": min(places.tolist(), default=None),
            "answer": None if right_c[found].any() else show(right_c.argmax())}


def pseudo_targets(forward, teacher, data):
    """The captions that the teacher's ITC distribution favours (section 3.3, figure 2).

    Returns:
      dict: `texts`, how many there are, and `images`, a list of dicts: `picture`, its first own
      `caption`, `found` (likeliest first, dicts with `text`, `share`, `right`).
    """
    temperature = float(jax.device_get(forward.params["temp"]))
    images, texts = spread(data.num_images, QUERIES), data.texts
    logits = data.encode_images(teacher)[1][images] @ data.encode_texts(teacher)[1].T / temperature
    shares = np.asarray(jax.nn.softmax(logits))
    return {"texts": len(texts), "images": [
        {"picture": data.picture(image), "caption": texts[first_text(data, image)],
         "found": [{"text": texts[text], "share": float(share[text]),
                    "right": bool(data.text_image[text] == image)} for text in best(share)]}
        for image, share in zip(images, shares)]}


def first_text(data, image):
    """The number of the first text of an image."""
    return int(np.argmax(data.text_image == image))


def spread(size, count):
    """At most `count` different rows of `size`, evenly apart."""
    centres = (np.arange(count) + 0.5) * size / count
    return list(dict.fromkeys(int(centre) for centre in centres)) if size else []


def best(scores_c):
    """The `SHOWN` columns of highest score, in the order of `recall.ranks`."""
    comparable = np.where(np.isnan(scores_c), -np.inf, scores_c)
    return np.argsort(comparable, kind="stable")[::-1][:SHOWN]
