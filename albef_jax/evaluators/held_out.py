"""Held-out images and captions, encoded once and paired in static jitted batches.

What the encoders make stays on the devices as long as it fits; to score pairs only row numbers
travel, many batches at a time. Rows are padded up to the batch and dropped again, so results are
exact for any batch size and any number of devices.
"""

from contextlib import closing
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.data.eval_sets import EvalSet
from albef_jax.data.sources import make_source
from albef_jax.evaluators.batches import run_batches, whole_rows
from albef_jax.evaluators.embeddings import Table, on_devices, slabs
from albef_jax.parallel.mesh import replicated, sharded_batch

# Pairs are scored in batches of texts up to these lengths: most captions are half the longest.
LENGTH_QUANTILES = (0.4, 0.8, 1.0)
# Scored by one call of the compiled function, about: many batches, so that the device is still busy
# when the host has prepared the next call, and few enough that a signal is soon seen.
PAIRS_PER_CALL = 1024


class HeldOut:
    """An evaluation source on the host, and the compiled functions that look at it.

    Attributes:
      text_ids, text_mask: int32 `[m, l]`, cut to the longest caption (padding changes nothing).
      texts: the m captions, cleaned, in full.
      text_image: int32 `[m]`, the image of each caption.
      num_images: n, different images, `max_images` at most. all_images: without that limit.
      compiled: the jitted functions by name: 'images', 'texts', 'pairs'.
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
        self._bound_to = self.compiled = self._mesh = None

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
                     "pairs": in_steps(score_pairs, mesh)}
        self.compiled = {name: jax.jit(function, out_shardings=replicated(mesh))
                         for name, function in functions.items()}
        self._bound_to, self._mesh = (dict(predict_fns), mesh), mesh

    def encode_images(self, params):
        """All images, once: embeddings `[n, t, d]` (see `Table.rows`), unit features `[n, e]`."""
        size, n = whole_rows(self._batch_size, self._mesh), self.num_images
        total = -(-n // size)
        with closing(self._set.images(size)) as images:
            return self._encode("images", params, islice(images, total), total, n)

    def encode_texts(self, params, text_ids, text_mask):
        """Texts `[m, l]`, once: embeddings `[m, l, d]` (see `Table.rows`), features `[m, e]`."""
        size, m = whole_rows(self._batch_size, self._mesh), len(text_ids)
        # A row past the end repeats the last text: a row without any token has no softmax.
        rows = [np.minimum(np.arange(start, start + size), m - 1) for start in range(0, m, size)]
        batches = (dict(text_ids=text_ids[r], text_mask=text_mask[r]) for r in rows)
        return self._encode("texts", params, batches, len(rows), m)

    def score_pairs(self, params, image_embeds, pair_image, pair_text, texts, per_image=1):
        """Scores pairs in blocks of `per_image` texts that share one image.

        Whatever the model derives from the image alone (the keys and values of the
        cross-attention) is then computed once per block instead of once per pair. Texts are cut
        to a few lengths, so that little padding is computed.

        Args:
          params: of the model.
          image_embeds: `[n, t, d]` from `encode_images`.
          pair_image, pair_text: int `[p]`, rows of `image_embeds` and of `texts`.
          texts: dict of arrays `[m, l, ...]`, a host array `text_mask` among them, in the order
            of the arguments of the bound function.
          per_image: texts in a block.

        Returns:
          What the bound `score_pairs` gives, `[p, ...]`, in the order of the pairs.
        """
        size = whole_rows(-(-self._batch_size // per_image), self._mesh)
        steps = max(1, PAIRS_PER_CALL // (size * per_image))
        lengths, out = texts["text_mask"].sum(axis=1), None
        tables = [on_devices(array, self._mesh) for array in texts.values()]
        for start, stop, first, image_table in slabs(image_embeds, self._mesh):
            shorter = 0
            for longest in np.unique(np.quantile(lengths, LENGTH_QUANTILES, method="higher")):
                pairs = np.flatnonzero(
                    (start <= pair_image) & (pair_image < stop)
                    & (shorter < lengths[pair_text]) & (lengths[pair_text] <= longest))
                shorter = longest
                image, rows = blocks_by_image(pair_image[pairs] - first, per_image)
                index = pairs[rows]
                text_tables = [table[:, :longest] for table in tables]
                calls = list(in_calls(len(image), size, steps))
                batches = (dict(index=index[row], image=np.where(used, image[row], UNUSED),
                                text=pair_text[index[row]]) for row, used in calls)

                def score(params, image, text, tables=(image_table, text_tables)):
                    return self.compiled["pairs"](params, *tables, image, text)

                for batch, scores in run_batches(score, params, batches, self._mesh, len(calls),
                                                 "pairs"):
                    used = batch["image"][0] != UNUSED
                    if out is None:
                        out = np.empty((len(pair_image), *scores.shape[3:]), scores.dtype)
                    out[batch["index"][:, used]] = scores[:, used]
        return out

    def _encode(self, name, params, batches, total, count):
        """Embeddings and the features of the first `count` rows of some batches."""
        table, feats = Table(total, self._mesh), []

        def encode(params, *arrays):
            embeds, feats_be = self.compiled[name](params, *arrays)
            return table.add(embeds), feats_be

        for _, (embeds, feats_be) in run_batches(encode, params, batches, self._mesh, total, name):
            table.fetched(embeds)
            feats.append(feats_be)
        return table.rows, np.concatenate(feats)[:count]


UNUSED = -1  # an image row of a step that is not computed


def in_steps(score_pairs, mesh):
    """`score_pairs` on many batches of rows of tables, one batch after the other.

    The result is a function of params, an image table `[n, t, d]`, text tables `[m, l, ...]`, image
    rows int32 `[g, c]` and text rows int32 `[g, c, s]`, for c batches of g images with s texts
    each; it gives `[g, c, s, ...]`. Batches from the first `UNUSED` image row on are left out.
    """
    def score(params, image_table, text_tables, image_gc, text_gcs):
        def at(step):
            texts = (table[text_gcs[:, step]] for table in text_tables)
            return score_pairs(params, image_table[image_gc[:, step]], *texts)

        def store(step, out):
            out = jax.lax.dynamic_update_index_in_dim(out, at(step), step, axis=1)
            return jax.lax.with_sharding_constraint(out, sharded_batch(mesh))

        one = jax.eval_shape(at, 0)
        out = jnp.zeros((*image_gc.shape, *one.shape[1:]), one.dtype)
        return jax.lax.fori_loop(0, jnp.sum(image_gc[0] != UNUSED), store, out)

    return score


def in_calls(rows, size, steps):
    """Deals numbered rows out to calls of so many steps of `size` rows.

    Yields:
      int `[size, steps]`, the rows of a call, and bool `[steps]`, which of its steps have any; the
      last row is there again where there are no more.
    """
    for first in range(0, rows, size * steps):
        row = first + np.arange(size * steps).reshape(steps, size).T
        yield np.minimum(row, rows - 1), row[0] < rows


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
