"""Held-out images and captions, encoded once and paired in static jitted batches.

Rows are padded up to the batch and dropped again, so results are exact for any batch size and
any number of devices.
"""

from contextlib import closing
from itertools import islice

import jax
import numpy as np

from albef_jax.data.eval_sets import EvalSet
from albef_jax.data.sources import make_source
from albef_jax.evaluators.batches import run_batches, whole_rows
from albef_jax.sharding import replicated

# Pairs are scored in batches of texts up to these lengths: most captions are half the longest.
LENGTH_QUANTILES = (0.4, 0.8, 1.0)


class HeldOut:
    """An evaluation source on the host, and the compiled functions that look at it.

    Attributes:
      text_ids, text_mask: int32 `[m, l]`, cut to the longest caption (padding changes nothing).
      texts: the m captions, cleaned, in full.
      text_image: int32 `[m]`, the image of each caption.
      num_images: n, different images, `max_images` at most. all_images: without that limit.
    """

    fields = {"max_images": (0, 0)}

    def __init__(self, source, settings, data_config, tokenizer):
        self._set = EvalSet(make_source(source), tokenizer, data_config)
        self._batch_size = settings["batch_size"]
        self.all_images = self._set.num_images
        self.num_images = min(settings["max_images"] or self.all_images, self.all_images)
        kept = self._set.text_image < self.num_images
        longest = int(self._set.text_mask[kept].sum(axis=1).max())
        self.text_ids = self._set.text_ids[kept, :longest]
        self.text_mask = self._set.text_mask[kept, :longest]
        self.text_image = self._set.text_image[kept]
        self._kept = np.flatnonzero(kept).tolist()
        self.texts = [self._set.texts[text] for text in self._kept]
        self._bound_to = self._compiled = self._mesh = None

    def describes(self, text, image):
        """Whether a text is true of an image (not only of its own), as far as the source knows."""
        return self._set.describes(self._kept[text], image)

    def picture(self, image):
        """A Pillow image for people: RGB, at its own size."""
        return self._set.picture(image)

    def bind(self, predict_fns, mesh, score_pairs):
        """Compiles for this model and mesh; does nothing when they are those of the last run.

        Args:
          predict_fns: the task's `encode_image`, `encode_text`, ...; the same functions every
            time, since new ones are compiled anew.
          mesh: one `data` axis; params are replicated over it.
          score_pairs: pure function of params, image embeddings `[g, n, d]` and arrays of texts
            `[g, s, l, ...]`: g images with s texts each -> `[g, s, ...]`, not a function of l.
        """
        if self._bound_to == (predict_fns, mesh):
            return
        # The encoders are compiled as they are, not wrapped: evaluators of one model share them.
        functions = {"images": predict_fns["encode_image"], "texts": predict_fns["encode_text"],
                     "pairs": score_pairs}
        self._compiled = {name: jax.jit(function, out_shardings=replicated(mesh))
                          for name, function in functions.items()}
        self._bound_to, self._mesh = (dict(predict_fns), mesh), mesh

    def encode_images(self, params):
        """All images, once: embeddings `[n, t, d]` and unit features `[n, e]`."""
        size, n = whole_rows(self._batch_size, self._mesh), self.num_images
        total = -(-n // size)
        embeds = feats = None
        with closing(self._set.images(size)) as images:
            for batch, result in self._run("images", params, islice(images, total), total):
                if embeds is None:
                    embeds, feats = (np.empty((n, *x.shape[1:]), x.dtype) for x in result)
                wanted = (batch["_mask"] > 0) & (batch["index"] < n)
                row = batch["index"][wanted]
                embeds[row], feats[row] = (x[wanted] for x in result)
        return embeds, feats

    def encode_texts(self, params, text_ids, text_mask):
        """Texts `[m, l]`, once: embeddings `[m, l, d]` and unit features `[m, e]`."""
        size, m = whole_rows(self._batch_size, self._mesh), len(text_ids)
        # A row past the end repeats the last text: a row without any token has no softmax.
        rows = [np.minimum(np.arange(start, start + size), m - 1) for start in range(0, m, size)]
        batches = (dict(text_ids=text_ids[r], text_mask=text_mask[r]) for r in rows)
        results = [result for _, result in self._run("texts", params, batches, len(rows))]
        return tuple(np.concatenate(parts)[:m] for parts in zip(*results))

    def score_pairs(self, params, image_embeds, pair_image, pair_text, texts, per_image=1):
        """Scores pairs in blocks of `per_image` texts that share one image.

        Whatever the model derives from the image alone (the keys and values of the
        cross-attention) is then computed once per block instead of once per pair. Texts are cut
        to a few lengths, so that little padding is computed.

        Args:
          params: of the model.
          image_embeds: `[n, t, d]` on the host.
          pair_image, pair_text: int `[p]`, rows of `image_embeds` and of `texts`.
          texts: dict of host arrays `[m, l, ...]`, `text_mask` among them, in the order of the
            arguments of the bound function.
          per_image: texts in a block.

        Returns:
          What the bound `score_pairs` gives, `[p, ...]`, in the order of the pairs.
        """
        size = whole_rows(-(-self._batch_size // per_image), self._mesh)
        lengths = texts["text_mask"].sum(axis=1)
        blocks, shorter = [], 0
        for longest in np.unique(np.quantile(lengths, LENGTH_QUANTILES, method="higher")):
            fits = (shorter < lengths[pair_text]) & (lengths[pair_text] <= longest)
            image, pairs = blocks_by_image(pair_image[fits], per_image)
            blocks.append((longest, image, np.flatnonzero(fits)[pairs]))
            shorter = longest

        def batches():
            for longest, image, pairs in blocks:
                cut = {name: array[:, :longest] for name, array in texts.items()}
                for start in range(0, len(image), size):
                    # Rows past the end, like free slots, score a pair once more.
                    rows = np.minimum(np.arange(start, start + size), len(image) - 1)
                    text = pair_text[pairs[rows]]
                    yield dict(index=pairs[rows], image_embeds=image_embeds[image[rows]],
                               **{name: array[text] for name, array in cut.items()})

        total = sum(-(-len(image) // size) for _, image, _ in blocks)
        out = None
        for batch, scores in self._run("pairs", params, batches(), total):
            if out is None:
                out = np.empty((len(pair_image), *scores.shape[2:]), scores.dtype)
            out[batch["index"]] = scores
        return out

    def _run(self, name, params, batches, total):
        """See `run_batches`."""
        return run_batches(self._compiled[name], params, batches, self._mesh, total, name)


def blocks_by_image(pair_image, per_image):
    """Lays pairs out in rows of one image each; without pairs there are no rows.

    Args:
      pair_image: int `[p]`, the image of each pair.
      per_image: s, pairs in a row.

    Returns:
      The image of each row, int `[r]`, ascending, and the pairs of each row, int `[r, s]`. Every
      pair is in exactly one row; free slots repeat the first pair of their row.
    """
    order = np.argsort(pair_image, kind="stable")
    images, first, counts = np.unique(pair_image[order], return_index=True, return_counts=True)
    rows = -(-counts // per_image)
    first_row = np.cumsum(rows) - rows
    place = np.arange(len(order)) - np.repeat(first, counts)
    row, slot = np.repeat(first_row, counts) + place // per_image, place % per_image
    pairs = np.empty((rows.sum(), per_image), np.int64)
    pairs[:] = order[slot == 0][:, None]
    pairs[row, slot] = order
    return np.repeat(images, rows), pairs
