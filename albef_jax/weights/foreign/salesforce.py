"""Names and layouts of the public PyTorch code, as one table that is read in both directions.

The table lists, for every leaf of our tree, the official tensors it is made of. Linear weights
are `[out, in]` there and `[in, out]` here; the three (two) projections of an attention are one
matrix here.
"""

import re
from typing import NamedTuple

import numpy as np

from albef_jax.errors import UserError

MOST_LAYERS = 256  # of an encoder in a file
EMPTY_HERE, EMPTY_THERE = -1, -100  # places of the id queue that hold no image id


class Entry(NamedTuple):
    """One leaf of our tree.

    Attributes:
      path: keys down the tree.
      sources: official names; in the tables of modules those of the online weights.
      layout: 'copy', 'linear' (transposed, several are joined along the output), 'join' (biases
        joined), 'conv' (patch embedding), 'scalar' (`[1]` there) or 'ids' (`[1, q]` there, with
        -100 for an empty place, -1 here).
    """

    path: tuple[str, ...]
    sources: tuple[str, ...]
    layout: str


def linear(path, *names):
    """Entries of a dense layer, or of several that are one here."""
    return [Entry((*path, "kernel"), tuple(f"{n}.weight" for n in names), "linear"),
            Entry((*path, "bias"), tuple(f"{n}.bias" for n in names), "join")]


def norm(path, name):
    """Entries of a LayerNorm."""
    return [Entry((*path, "scale"), (f"{name}.weight",), "copy"),
            Entry((*path, "bias"), (f"{name}.bias",), "copy")]


def vit_table(depth, prefix="visual_encoder"):
    """Entries of the image encoder."""
    table = [
        Entry((prefix, "cls_token"), (f"{prefix}.cls_token",), "copy"),
        Entry((prefix, "pos_embed"), (f"{prefix}.pos_embed",), "copy"),
        Entry((prefix, "patch_embed", "kernel"), (f"{prefix}.patch_embed.proj.weight",), "conv"),
        Entry((prefix, "patch_embed", "bias"), (f"{prefix}.patch_embed.proj.bias",), "copy"),
        *norm((prefix, "norm"), f"{prefix}.norm")]
    for i in range(depth):
        ours, theirs = (prefix, f"block_{i}"), f"{prefix}.blocks.{i}"
        table += [
            *norm((*ours, "norm1"), f"{theirs}.norm1"),
            *linear((*ours, "attn", "qkv", "dense"), f"{theirs}.attn.qkv"),
            *linear((*ours, "attn", "proj"), f"{theirs}.attn.proj"),
            *norm((*ours, "norm2"), f"{theirs}.norm2"),
            *linear((*ours, "mlp", "fc1"), f"{theirs}.mlp.fc1"),
            *linear((*ours, "mlp", "fc2"), f"{theirs}.mlp.fc2")]
    return table


def embeddings_table(root, prefix):
    """Entries of BERT's embeddings."""
    names = ("word", "position", "token_type")
    return [*(Entry((*root, name), (f"{prefix}.{name}_embeddings.weight",), "copy")
              for name in names),
            *norm((*root, "norm"), f"{prefix}.LayerNorm")]


def words_table(root, prefix):
    """Entries of the MLM head; its decoder is the word embeddings."""
    return [*linear((*root, "dense"), f"{prefix}.transform.dense"),
            *norm((*root, "norm"), f"{prefix}.transform.LayerNorm"),
            Entry((*root, "bias"), (f"{prefix}.bias",), "copy")]


def layer_table(root, prefix, cross=False, key_value=True):
    """Entries of one BERT layer.

    Args:
      root: our path. prefix: the official one. cross: with cross-attention.
      key_value: with key and value projections of its own in cross-attention.
    """
    own, other = f"{prefix}.attention", f"{prefix}.crossattention"
    table = [
        *linear((*root, "attention", "qkv", "dense"),
                *(f"{own}.self.{part}" for part in ("query", "key", "value"))),
        *linear((*root, "attention", "output"), f"{own}.output.dense"),
        *norm((*root, "attention", "norm"), f"{own}.output.LayerNorm"),
        *linear((*root, "ffn", "mlp", "fc1"), f"{prefix}.intermediate.dense"),
        *linear((*root, "ffn", "mlp", "fc2"), f"{prefix}.output.dense"),
        *norm((*root, "ffn", "norm"), f"{prefix}.output.LayerNorm")]
    if cross:
        table += [
            *linear((*root, "cross", "query", "dense"), f"{other}.self.query"),
            *linear((*root, "cross", "output"), f"{other}.output.dense"),
            *norm((*root, "cross", "norm"), f"{other}.output.LayerNorm")]
    if cross and key_value:
        table += linear((*root, "cross", "key_value", "dense"),
                        f"{other}.self.key", f"{other}.self.value")
    return table


def bert_table(text_layers, fusion_layers, bert="bert.", words=True, pairs=False):
    """Entries of text encoder, fusion encoder and MLM head.

    Args:
      text_layers, fusion_layers: depths. bert: what follows `text_encoder.` in the names.
      words: with the MLM head.
      pairs: two fusion layers each, the second with the key and value projections of the first.
    """
    root, prefix = ("text_encoder",), f"text_encoder.{bert}"
    table = embeddings_table((*root, "embeddings"), f"{prefix}embeddings")
    if words:
        table += words_table((*root, "head"), "text_encoder.cls.predictions")
    for i in range(text_layers):
        table += layer_table((*root, f"text_{i}"), f"{prefix}encoder.layer.{i}")
    for i in range(fusion_layers * (2 if pairs else 1)):
        table += layer_table((*root, f"fusion_{i}"), f"{prefix}encoder.layer.{text_layers + i}",
                             cross=True, key_value=not pairs or i % 2 == 0)
    return table


def decoder_table(layers):
    """Entries of the answer decoder of VQA."""
    root, prefix = ("text_decoder",), "text_decoder.bert"
    table = embeddings_table((*root, "embeddings"), f"{prefix}.embeddings")
    table += words_table((*root, "head"), "text_decoder.cls.predictions")
    for i in range(layers):
        table += layer_table((*root, f"layer_{i}"), f"{prefix}.encoder.layer.{i}", cross=True)
    return table


def momentum_name(name):
    """The official name of a tensor's momentum copy: `text_proj.bias` -> `text_proj_m.bias`."""
    part, rest = name.split(".", 1)
    return f"{part}_m.{rest}"


def depth(names, pattern):
    """How many layers some names speak of: different first groups of a pattern at their start.

    A UserError at more than any model has, whose names alone would take minutes.
    """
    found = len({found[1] for found in map(re.compile(pattern).match, names) if found})
    if found > MOST_LAYERS:
        raise UserError(f"The file speaks of {found} layers, and no model has more than "
                        f"{MOST_LAYERS}; give the file with the weights.")
    return found


def shape_of(tensors, name, axes, kind, path):
    """The shape of a tensor that tells a size.

    Args:
      tensors: name -> array. name: of the tensor. axes: that it must have.
      kind: of the checkpoint, which has a name. path: of the file.

    Raises:
      UserError: it is missing, empty, or has another number of axes.
    """
    found = tuple(tensors[name].shape) if name in tensors else None
    if found is None or len(found) != axes or 0 in found:
        raise UserError(f"{path} does not fit --as {kind.name}: {name} is "
                        f"{'missing' if found is None else list(found)}; choose another kind or a "
                        "complete checkpoint.")
    return found


def shapes_there(entry, shape, patch_size=None):
    """Official shapes of an entry's tensors, given the shape of our leaf.

    `patch_size`: of the model, for entries with the layout 'conv'.
    """
    n = len(entry.sources)
    if entry.layout == "linear":
        return [(shape[1] // n, shape[0])] * n
    if entry.layout == "join":
        return [(shape[0] // n,)] * n
    if entry.layout == "conv":
        return [(shape[1], shape[0] // patch_size**2, patch_size, patch_size)]
    return [(1, *shape) if entry.layout in ("scalar", "ids") else shape]


def read_leaves(table, tensors, leaves, patch_size, report):
    """Official tensors -> our leaves, strictly.

    Args:
      table: entries. tensors: name -> array, all of a file. patch_size: of the model.
      leaves: path -> shape and dtype of each leaf of the model.
      report: a `weights.report.Report`; knows already what is ignored or fresh.

    Returns:
      Path -> numpy array, of the entries.

    Raises:
      UserError: a tensor is missing, left over, misshapen or not finite; a leaf has no value.
    """
    for path, sources, _ in table:
        report.use(sources, path)
    for entry in (entry for entry in table if entry.path in leaves):
        leaf = leaves[entry.path]
        for name, shape in zip(entry.sources, shapes_there(entry, leaf.shape, patch_size)):
            if name in tensors:
                report.inspect(name, tensors[name], shape, leaf.dtype)
    report.check(tensors, leaves)
    return {entry.path: to_leaf(entry, [tensors[name] for name in entry.sources])
            for entry in table}


def to_leaf(entry, parts):
    """Official arrays of an entry -> our leaf, contiguous; float32 or int32."""
    first = parts[0]
    integer = np.issubdtype(first.dtype, np.integer)
    if entry.layout == "linear":
        leaf = np.concatenate([part.T for part in parts], axis=1)
    elif entry.layout == "conv":
        leaf = first.transpose(2, 3, 1, 0).reshape(-1, first.shape[0])
    elif entry.layout == "scalar":
        leaf = first[0]
    elif entry.layout == "ids":
        leaf = np.where(first[0] == EMPTY_THERE, EMPTY_HERE, first[0])
    else:
        leaf = np.concatenate(parts) if entry.layout == "join" else first
    return np.asarray(leaf, np.int32 if integer else np.float32, order="C")


def to_tensors(entry, leaf, patch_size=None):
    """Our leaf -> the official arrays of an entry, in the order of its sources; integers are
    int64 there. `patch_size`: see `shapes_there`."""
    if entry.layout == "conv":
        square = leaf.reshape(patch_size, patch_size, -1, leaf.shape[-1])
        return [square.transpose(3, 2, 0, 1)]
    if entry.layout in ("linear", "join"):
        return np.split(leaf.T, len(entry.sources))
    if entry.layout == "scalar":
        return [leaf[None].astype(np.int64)]
    if entry.layout == "ids":
        return [np.where(leaf == EMPTY_HERE, EMPTY_THERE, leaf)[None].astype(np.int64)]
    return [leaf]
