"""Held-out images and texts, encoded once for all evaluators of a model."""

from contextlib import closing
from itertools import islice

import numpy as np

from albef_jax.data.eval_sets import EvalSet
from albef_jax.evaluators.batches import whole_rows
from albef_jax.evaluators.embeddings import run_encoder
from albef_jax.evaluators.pairs import score_pairs
from albef_jax.evaluators.recall import UNSCORED


# Of `Task.predict_fns`: what makes tokens of images and of texts, and match logits of these.
CALLS = ("encode_image", "encode_text", "match")


class HeldOut:
    """The first images of a source, and their texts.

    Attributes:
      num_images: n, different images. text_image: int32 `[m]`, the image of each text.
      texts: the m texts, cleaned, in full.
      text_ids, text_mask: int32 `[m, l]`, cut to the longest (padding changes nothing).
      batch_size: images, texts or pairs that run at once.
    """

    options = {"max_images": (0, 0)}

    def __init__(self, everything, batch_size, max_images=0, calls=CALLS):
        """`everything`: an `EvalSet`. `max_images`: 0 for all. `calls`: functions as in `CALLS`."""
        self._set, self.batch_size, self._calls = everything, batch_size, calls
        self.num_images = min(max_images or everything.num_images, everything.num_images)
        kept = everything.text_image < self.num_images
        longest = int(everything.text_mask[kept].sum(axis=1).max())
        self.text_ids = everything.text_ids[kept, :longest]
        self.text_mask = everything.text_mask[kept, :longest]
        self.text_image = everything.text_image[kept]
        self._numbers = np.flatnonzero(kept).tolist()
        self.texts = [everything.texts[number] for number in self._numbers]

    @classmethod
    def of(cls, evaluator, calls=CALLS):
        """That of an `Evaluator` with the options of this class, which asks for image and text."""
        everything = EvalSet(evaluator.source, evaluator.fields, evaluator.tokenizer,
                             evaluator.config.data)
        return cls(everything, evaluator.settings["batch_size"], evaluator.settings["max_images"],
                   calls)

    def first(self, images):
        """The same with so many images at most."""
        return HeldOut(self._set, self.batch_size, min(images, self.num_images), self._calls)

    def describes(self, text, image):
        """Whether a text is true of an image (not only of its own), as far as the source knows."""
        return self._set.describes(self._numbers[text], image)

    def picture(self, image):
        """A Pillow image for people: RGB, at its own size."""
        return self._set.picture(int(image))

    def encode_images(self, forward):
        """All images, once: embeddings `[n, t, d]` and unit features `[n, e]`; see `run_encoder`.

        What another encoded of this source is used, as far as it reaches. The features are left
        out where the model has none.
        """
        def encode():
            size = whole_rows(self.batch_size, forward.mesh)
            total = -(-self.num_images // size)
            with closing(self._set.images(size)) as batches:
                return run_encoder(forward, forward[call], islice(batches, total), total,
                                   self.num_images, "images")

        call = self._calls[0]
        return self._once(forward, call, self.num_images, encode)

    def encode_texts(self, forward):
        """All texts, once, as `encode_images`: embeddings `[m, l, d]` and features `[m, e]`."""
        def encode():
            size, m = whole_rows(self.batch_size, forward.mesh), len(self.texts)
            # A row past the end repeats the last one: a row without any token has no softmax.
            rows = [np.minimum(np.arange(start, start + size), m - 1)
                    for start in range(0, m, size)]
            batches = (dict(text_ids=self.text_ids[r], text_mask=self.text_mask[r]) for r in rows)
            return run_encoder(forward, forward[call], batches, len(rows), m, "texts")

        # Where an image is listed again later its texts are not the first ones of the source.
        is_first, call = self._numbers[-1] == len(self._numbers) - 1, self._calls[1]
        return self._once(forward, call if is_first else f"texts of {self.num_images}",
                          len(self.texts), encode)

    def match(self, forward, pair_image, pair_text, per_image=1):
        """The match logits `[p, 2]`, or `[p]`, of pairs of an image and a text; see
        `pairs.score_pairs`."""
        texts = {"text_embeds": self.encode_texts(forward)[0], "text_mask": self.text_mask}
        return score_pairs(forward, forward[self._calls[2]], self.encode_images(forward)[0], texts,
                           pair_image, pair_text, self.batch_size, per_image, "pairs")

    def match_scores(self, forward, chosen_it, per_image=1, first=0, odds=False):
        """The logit of a match, float32 `[n, m]`, of the chosen pairs, bool `[n, m]`; n images
        from `first` on. With `odds` the difference to that of no match: the log odds.

        Others are not computed and `UNSCORED`. `forward`, `per_image`: see `pairs.score_pairs`.
        """
        image, text = np.nonzero(chosen_it)
        match = np.full(chosen_it.shape, UNSCORED, np.float32)
        logits = self.match(forward, first + image, text, per_image)
        if logits.ndim > 1:
            logits = logits[:, 1] - logits[:, 0] if odds else logits[:, 1]
        match[image, text] = logits
        return match

    def _once(self, forward, what, count, encode):
        """The first `count` rows of what was encoded of the source, encoded now if it was not.

        The source itself is the key: equal fingerprints may still have other image files.
        """
        _, embeds, *feats = forward.once((self._set.source, what), lambda: (count, *encode()),
                                         enough=lambda kept: kept[0] >= count)
        return (embeds[:count] if isinstance(embeds, np.ndarray) else embeds,
                *(feats_ne[:count] for feats_ne in feats))
