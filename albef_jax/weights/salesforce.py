"""Names and layouts of the public PyTorch code, as one table that is read in both directions.

The table lists, for every leaf of our tree, the official tensors it is made of. Linear weights
are `[out, in]` there and `[in, out]` here; the three (two) projections of an attention are one
matrix here.
"""

from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One leaf of our tree.

    Attributes:
      path: keys down the tree.
      sources: official names without the `visual_encoder`-style prefix of a momentum copy.
      layout: 'copy', 'linear' (transposed, several are joined along the output), 'join'
        (biases joined) or 'conv' (patch embedding).
    """

    path: tuple[str, ...]
    sources: tuple[str, ...]
    layout: str


def _linear(path, *names):
    return [Entry((*path, "kernel"), tuple(f"{n}.weight" for n in names), "linear"),
            Entry((*path, "bias"), tuple(f"{n}.bias" for n in names), "join")]


def _norm(path, name):
    return [Entry((*path, "scale"), (f"{name}.weight",), "copy"),
            Entry((*path, "bias"), (f"{name}.bias",), "copy")]


def vit_table(depth, prefix="visual_encoder"):
    """Entries of the image encoder."""
    root = (prefix,)
    table = [
        Entry((*root, "cls_token"), (f"{prefix}.cls_token",), "copy"),
        Entry((*root, "pos_embed"), (f"{prefix}.pos_embed",), "copy"),
        Entry((*root, "patch_embed", "kernel"), (f"{prefix}.patch_embed.proj.weight",), "conv"),
        Entry((*root, "patch_embed", "bias"), (f"{prefix}.patch_embed.proj.bias",), "copy"),
        *_norm((*root, "norm"), f"{prefix}.norm"),
    ]
    for i in range(depth):
        ours, theirs = (*root, f"block_{i}"), f"{prefix}.blocks.{i}"
        table += [
            *_norm((*ours, "norm1"), f"{theirs}.norm1"),
            *_linear((*ours, "attn", "qkv", "dense"), f"{theirs}.attn.qkv"),
            *_linear((*ours, "attn", "proj"), f"{theirs}.attn.proj"),
            *_norm((*ours, "norm2"), f"{theirs}.norm2"),
            *_linear((*ours, "mlp", "fc1"), f"{theirs}.mlp.fc1"),
            *_linear((*ours, "mlp", "fc2"), f"{theirs}.mlp.fc2"),
        ]
    return table


def bert_table(text_layers, fusion_layers, prefix="text_encoder"):
    """Entries of text encoder, fusion encoder and MLM head."""
    root, embeddings = (prefix,), f"{prefix}.bert.embeddings"
    head = f"{prefix}.cls.predictions"
    table = [
        *(Entry((*root, "embeddings", ours), (f"{embeddings}.{theirs}_embeddings.weight",), "copy")
          for ours, theirs in (("word", "word"), ("position", "position"),
                               ("token_type", "token_type"))),
        *_norm((*root, "embeddings", "norm"), f"{embeddings}.LayerNorm"),
        *_linear((*root, "head", "dense"), f"{head}.transform.dense"),
        *_norm((*root, "head", "norm"), f"{head}.transform.LayerNorm"),
        Entry((*root, "head", "bias"), (f"{head}.bias",), "copy"),
    ]
    for i in range(text_layers + fusion_layers):
        fusion = i >= text_layers
        ours = (*root, f"fusion_{i - text_layers}" if fusion else f"text_{i}")
        theirs = f"{prefix}.bert.encoder.layer.{i}"
        own = f"{theirs}.attention"
        table += [
            *_linear((*ours, "attention", "qkv", "dense"),
                     *(f"{own}.self.{part}" for part in ("query", "key", "value"))),
            *_linear((*ours, "attention", "output"), f"{own}.output.dense"),
            *_norm((*ours, "attention", "norm"), f"{own}.output.LayerNorm"),
            *_linear((*ours, "ffn", "mlp", "fc1"), f"{theirs}.intermediate.dense"),
            *_linear((*ours, "ffn", "mlp", "fc2"), f"{theirs}.output.dense"),
            *_norm((*ours, "ffn", "norm"), f"{theirs}.output.LayerNorm"),
        ]
        if fusion:
            cross = f"{theirs}.crossattention"
            table += [
                *_linear((*ours, "cross", "query", "dense"), f"{cross}.self.query"),
                *_linear((*ours, "cross", "key_value", "dense"),
                         f"{cross}.self.key", f"{cross}.self.value"),
                *_linear((*ours, "cross", "output"), f"{cross}.output.dense"),
                *_norm((*ours, "cross", "norm"), f"{cross}.output.LayerNorm"),
            ]
    return table


def teacher_table(model):
    """Entries of the parts that have a momentum copy. `model` is a config's model block."""
    return [
        *vit_table(model.vit_depth),
        *bert_table(model.text_layers, model.fusion_layers),
        *_linear(("vision_proj", "dense"), "vision_proj"),
        *_linear(("text_proj", "dense"), "text_proj"),
    ]


def pretrain_table(model):
    """Entries of all online parameters of the pre-training model."""
    return [*teacher_table(model), *_linear(("itm_head", "dense"), "itm_head"),
            Entry(("temp",), ("temp",), "copy")]


def momentum_name(name):
    """The official name of a tensor's momentum copy: `text_proj.bias` -> `text_proj_m.bias`."""
    part, rest = name.split(".", 1)
    return f"{part}_m.{rest}"


def read_tree(table, tensors, rename=lambda name: name):
    """Official tensors -> our nested dict of numpy arrays.

    Args:
      table: entries to fill. tensors: official name -> array. rename: applied to every name.
    """
    tree = {}
    for entry in table:
        parts = [np.asarray(tensors[rename(name)]) for name in entry.sources]
        if entry.layout == "linear":
            leaf = np.concatenate([part.T for part in parts], axis=1)
        elif entry.layout == "conv":
            leaf = parts[0].transpose(2, 3, 1, 0).reshape(-1, parts[0].shape[0])
        else:
            leaf = np.concatenate(parts) if entry.layout == "join" else parts[0]
        node = tree
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = leaf
    return tree


def write_tensors(table, tree, patch_size, rename=lambda name: name):
    """Our tree -> official name -> numpy array; the inverse of `read_tree`."""
    tensors = {}
    for entry in table:
        leaf = tree
        for key in entry.path:
            leaf = leaf[key]
        leaf = np.asarray(leaf)
        if entry.layout == "conv":
            square = leaf.reshape(patch_size, patch_size, -1, leaf.shape[-1])
            parts = [square.transpose(3, 2, 0, 1)]
        elif entry.layout in ("linear", "join"):
            parts = np.split(leaf.T, len(entry.sources))
        else:
            parts = [leaf]
        tensors.update(zip((rename(name) for name in entry.sources), parts))
    return tensors
