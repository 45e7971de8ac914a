"""What the model and its teacher say about a few held-out pictures and captions.

The pictures are spread evenly over the held-out set: nothing is picked for looking good.
"""

import base64
import io

import jax
import numpy as np
from PIL import Image

from albef_jax.evaluators import COMMON_FIELDS
from albef_jax.evaluators.held_out import HeldOut
from albef_jax.evaluators.masked import draw_masked, word_ids
from albef_jax.evaluators.retrieval import (
    UNSCORED,
    RetrievalEvaluator,
    candidates,
    match_logits,
    match_scores,
    ranks,
)

MAX_IMAGES = 512  # that queries choose from
MAX_RERANKED = 32  # candidates per query, or fewer if the evaluator takes fewer
QUERIES = 6  # of each kind
SHOWN = 5  # images, texts or words
MAX_MASKED = 2  # words of a caption
THUMBNAIL = 192  # pixels of the longer side


class Examples:
    """One held-out set as the online model and its teacher see it, asked for examples.

    Every method returns plain values for the page: texts, numbers, and pictures as data URIs.
    """

    def __init__(self, block, config, tokenizer, params, teacher, predict_fns, mesh):
        """Encodes images and captions twice, by the model and by its teacher.

        Args:
          block: of `config.evals`, kind 'retrieval': source, size and candidates.
          config: of the run. tokenizer: of the run.
          params: online parameters, on the mesh. teacher: the momentum copy of a part of them.
          predict_fns: of the task. mesh: with the axis 'data'; every process takes part.

        Raises:
          UserError: the held-out data cannot be read.
        """
        fields = COMMON_FIELDS | RetrievalEvaluator.fields
        settings = {name: block.get(name, default) for name, (default, _) in fields.items()}
        settings["max_images"] = min(settings["max_images"] or MAX_IMAGES, MAX_IMAGES)
        self.k = min(settings["k"], MAX_RERANKED)
        self.data = data = HeldOut(block["source"], settings, config.data, tokenizer)
        # What the evaluator ranks, which may be more than what is shown here.
        self.ranked = min(block.get("max_images", 0) or data.all_images, data.all_images)
        data.bind(predict_fns, mesh, match_logits(predict_fns["match"]))
        self._tokenizer, self._seed, self._params = tokenizer, config.seed, params
        # The parts without a momentum copy are not read; with them nothing is compiled anew.
        self._teacher = {**params, **teacher}
        self._top_words = (jax.jit(top_words(predict_fns["mlm_logits"]))
                           if "mlm_logits" in predict_fns else None)
        self._images, self._image_feats = data.encode_images(params)
        self._texts, self._text_feats = data.encode_texts(params, data.text_ids, data.text_mask)
        self._teacher_images, self._teacher_image_feats = data.encode_images(self._teacher)
        _, self._teacher_text_feats = data.encode_texts(
            self._teacher, data.text_ids, data.text_mask)

    def queries(self):
        """Images found for captions, and captions found for images, re-ranked.

        Returns:
          Two lists of dicts: the query, `found` best first, the `place` of the right answer from
          1, None if it is not among the candidates.
        """
        data = self.data
        rows = spread(data.num_images, 2 * QUERIES)
        captions = [int(np.argmax(data.text_image == row)) for row in rows[::2]]
        images = rows[1::2]
        sims = self._image_feats @ self._text_feats.T
        for_text, for_image = np.zeros(sims.shape, bool), np.zeros(sims.shape, bool)
        for_text[:, captions] = candidates(sims[:, captions].T, self.k).T
        for_image[images] = candidates(sims[images], self.k)
        match = match_scores(data, self._params, self._images, self._texts, for_text | for_image)
        score_t2i = np.where(for_text, match, UNSCORED).T
        score_i2t = np.where(for_image, match, UNSCORED)
        return ([self._text_query(text, score_t2i[text]) for text in captions],
                [self._image_query(image, score_i2t[image]) for image in images])

    def words(self, chosen=()):
        """Masked words of captions with the model's and the teacher's guesses.

        Args:
          chosen: only these words are masked, if any are given.

        Returns:
          list of dicts: `picture`, `pieces` of the caption, `guesses` per masked word; empty if
          no caption has as few masked words as are shown, None if the task predicts no words.
        """
        if self._top_words is None:
            return None
        data, special = self.data, self._tokenizer.special_ids
        masked = draw_masked(data.text_ids, special, np.random.default_rng(self._seed))
        if chosen:
            masked &= np.isin(data.text_ids, word_ids(chosen, self._tokenizer))
        count = masked.sum(axis=1)
        fitting = np.flatnonzero((1 <= count) & (count <= MAX_MASKED))
        if not len(fitting):
            return []
        texts = fitting[spread(len(fitting), QUERIES)]
        images, masked = data.text_image[texts], masked[texts]
        ids = np.where(masked, self._tokenizer.mask_id, data.text_ids[texts])
        online, momentum = (
            jax.device_get(self._top_words(params, embeds[images], ids, data.text_mask[texts]))
            for params, embeds in ((self._params, self._images),
                                   (self._teacher, self._teacher_images)))
        return [{
            "picture": self._picture(images[row]),
            "pieces": self._pieces(data.text_ids[text], masked[row]),
            "guesses": [{
                "word": self._word(data.text_ids[text, at]),
                "model": self._guesses(*(x[row, at] for x in online), data.text_ids[text, at]),
                "teacher": self._guesses(*(x[row, at] for x in momentum), data.text_ids[text, at]),
            } for at in np.flatnonzero(masked[row])],
        } for row, text in enumerate(texts)]

    def pseudo_targets(self):
        """The captions that the teacher's ITC distribution favours (section 3.3, figure 2).

        Returns:
          list of dicts: `picture`, its first own `caption`, `found` with probabilities.
        """
        data = self.data
        temperature = float(jax.device_get(self._params["temp"]))
        images = spread(data.num_images, QUERIES)
        logits = self._teacher_image_feats[images] @ self._teacher_text_feats.T / temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return [{"picture": self._picture(image),
                 "caption": data.texts[int(np.argmax(data.text_image == image))],
                 "found": [{"text": data.texts[text], "share": float(share[text]),
                            "right": bool(data.text_image[text] == image)}
                           for text in best(share)]}
                for image, share in zip(images, shares)]

    def _text_query(self, text, scores):
        image = self.data.text_image[text]
        found = [{"picture": self._picture(row), "score": float(scores[row]),
                  "right": bool(row == image)} for row in best(scores) if scores[row] != UNSCORED]
        place = place_of(scores, image) if scores[image] != UNSCORED else None
        answer = None if any(item["right"] for item in found) else self._picture(image)
        return {"caption": self.data.texts[text], "found": found, "place": place,
                "answer": answer}

    def _image_query(self, image, scores):
        own = self.data.text_image == image
        found = [{"text": self.data.texts[text], "score": float(scores[text]),
                  "right": bool(own[text])} for text in best(scores) if scores[text] != UNSCORED]
        places = [place_of(scores, text)
                  for text in np.flatnonzero(own & (scores != UNSCORED))]
        answer = None if any(item["right"] for item in found) else self.data.texts[own.argmax()]
        return {"picture": self._picture(image), "found": found,
                "place": min(places, default=None), "answer": answer}

    def _picture(self, row):
        return data_uri(self.data.picture(int(row)))

    def _word(self, word):
        return self._tokenizer.decode([word])

    def _pieces(self, ids_l, masked_l):
        """The caption piece by piece: text, whether a space comes before it, whether masked."""
        pieces = [(self._word(word), masked) for word, masked in zip(ids_l, masked_l)]
        return [{"text": text.removeprefix("##"), "space": not text.startswith("##"),
                 "masked": bool(masked)} for text, masked in pieces if text]

    def _guesses(self, shares, words, truth):
        return [{"text": self._word(word) or "[UNK]", "share": float(share),
                 "right": bool(word == truth)} for share, word in zip(shares, words)]


def top_words(mlm_logits):
    """The function of `mlm_logits`' arguments that gives the likeliest words.

    Returns:
      Function to probabilities and word ids, both `[b, l, SHOWN]`, likeliest first.
    """
    def likeliest(params, image_embeds, masked_ids, text_mask):
        logits = mlm_logits(params, image_embeds, masked_ids, text_mask)
        return jax.lax.top_k(jax.nn.softmax(logits), SHOWN)

    return likeliest


def spread(size, count):
    """At most `count` different rows of `size`, evenly apart."""
    centres = (np.arange(count) + 0.5) * size / count
    return list(dict.fromkeys(int(centre) for centre in centres)) if size else []


def place_of(scores_c, target):
    """The place of a column from 1, see `evaluators.retrieval.ranks`."""
    return int(ranks(scores_c[None], np.array([target]))[0]) + 1


def best(scores_c):
    """The `SHOWN` columns of highest score, in the order of `evaluators.retrieval.ranks`."""
    comparable = np.where(np.isnan(scores_c), -np.inf, scores_c)
    return np.argsort(comparable, kind="stable")[::-1][:SHOWN]


def data_uri(image):
    """A thumbnail as a data URI: PNG where it is small enough, as of drawings, else JPEG."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = [("png", _encoded(image, "PNG", optimize=True)),
               ("jpeg", _encoded(image, "JPEG", quality=82, optimize=True))]
    kind, data = min(encoded, key=lambda item: len(item[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
