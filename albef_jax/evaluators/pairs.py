"""Scores of pairs of what was encoded, in static jitted batches; re-ranking is done here.

Only row numbers of the encodings travel, many batches at a time. Rows are padded up to the batch
and dropped again, so results are exact for any batch size and any number of devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.data.eval_sets import INDEX
from albef_jax.evaluators.batches import run_batches, whole_rows
from albef_jax.evaluators.embeddings import on_devices, slabs
from albef_jax.parallel.mesh import sharded_batch

# Pairs are scored in batches of texts up to these lengths: most captions are half the longest.
LENGTH_QUANTILES = (0.4, 0.8, 1.0)
# Scored by one call of the compiled function, about: many batches, so that the device is still busy
# when the host has prepared the next call, and few enough that a signal is soon seen.
PAIRS_PER_CALL = 1024
UNUSED = -1  # an image row of a step that is not computed


def score_pairs(forward, score, images, texts, pair_image, pair_text, batch_size, per_image=1,
                what=""):
    """Scores pairs in blocks of `per_image` texts that share one image.

    Whatever the model derives from the image alone (the keys and values of the cross-attention) is
    then computed once per block instead of once per pair. Texts are cut to a few lengths, so that
    little padding is computed.

    Args:
      forward: the model, a `Forward`.
      score: pure function of params, `image_embeds` `[g, t, d]` and their texts `[g, l, ...]` by
        name, such as `match` of `Task.predict_fns` -> `[g, ...]`, which does not depend on l; the
        same one every time, since a new one is compiled anew.
      images: embeddings `[n, t, d]`, of the devices or the host.
      texts: arrays `[m, l, ...]` by name, `text_mask` of the host among them; l of the others may
        be larger.
      pair_image, pair_text: int `[p]`, rows of `images` and of `texts`.
      batch_size: pairs that run at once. per_image: texts in a block.
      what: a word for the progress bar; '' for none.

    Returns:
      Host array `[p, ...]`, in the order of the pairs.
    """
    mesh = forward.mesh
    size = whole_rows(-(-batch_size // per_image), mesh)
    steps = max(1, PAIRS_PER_CALL // (size * per_image))
    lengths, out = texts["text_mask"].sum(axis=1), None
    compiled = forward.compiled(in_steps(score, mesh))
    tables = {name: on_devices(array, mesh) for name, array in texts.items()}
    for start, stop, first, image_table in slabs(images, mesh):
        shorter = 0
        for longest in np.unique(np.quantile(lengths, LENGTH_QUANTILES, method="higher")):
            pairs = np.flatnonzero(
                (start <= pair_image) & (pair_image < stop)
                & (shorter < lengths[pair_text]) & (lengths[pair_text] <= longest))
            shorter = longest
            rows_image, rows = blocks_by_image(pair_image[pairs] - first, per_image)
            index = pairs[rows]
            text_tables = {name: table[:, :longest] for name, table in tables.items()}
            calls = list(in_calls(len(rows_image), size, steps))
            batches = ({INDEX: index[row], "image": np.where(used, rows_image[row], UNUSED),
                        "text": pair_text[index[row]]} for row, used in calls)

            def of_rows(params, image, text, tables=(image_table, text_tables)):
                return compiled(params, *tables, image, text)

            for batch, scores in run_batches(of_rows, forward.params, batches, mesh, len(calls),
                                             what):
                used = batch["image"][0] != UNUSED
                if out is None:
                    out = np.empty((len(pair_image), *scores.shape[3:]), scores.dtype)
                out[batch[INDEX][:, used]] = scores[:, used]
    return out


@functools.lru_cache(maxsize=64)
def in_steps(score, mesh):
    """`score` on c batches of rows of tables, g images with s texts each, one after the other.

    A function of params, an image table `[n, t, d]`, text tables `[m, l, ...]` by name, image rows
    int32 `[g, c]` and text rows int32 `[g, c, s]`; it gives `[g, c, s, ...]`. Batches from the
    first `UNUSED` image row on are left out.
    """
    def score_steps(params, image_table, text_tables, image_gc, text_gcs):
        def at(step):
            texts = {name: table[text_gcs[:, step]] for name, table in text_tables.items()}
            of_slot = functools.partial(score, params, image_embeds=image_table[image_gc[:, step]])
            return jax.vmap(lambda texts: of_slot(**texts), in_axes=1, out_axes=1)(texts)

        def store(step, out):
            out = jax.lax.dynamic_update_index_in_dim(out, at(step), step, axis=1)
            return jax.lax.with_sharding_constraint(out, sharded_batch(mesh))

        one = jax.eval_shape(at, 0)
        out = jnp.zeros((*image_gc.shape, *one.shape[1:]), one.dtype)
        return jax.lax.fori_loop(0, jnp.sum(image_gc[0] != UNUSED), store, out)

    return score_steps


def in_calls(rows, size, steps):
    """Deals numbered rows out to calls of so many steps of `size` rows.

    Yields the rows of a call, int `[size, steps]`, the last one again where there are no more, and
    which of its steps have any, bool `[steps]`.
    """
    for first in range(0, rows, size * steps):
        row = first + np.arange(size * steps).reshape(steps, size).T
        yield np.minimum(row, rows - 1), row[0] < rows


def blocks_by_image(pair_image, per_image):
    """Lays pairs out in rows of one image each, s = `per_image`; without pairs there are none.

    Args:
      pair_image: int `[p]`, the image of each pair.

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
