"""BERT weights in the layout of Hugging Face: text encoder, fusion encoder and MLM head.

Tensors are called `bert.embeddings...`, `bert.encoder.layer.N...` and `cls.predictions...`; the
first part is left out in files without a head, and old files say gamma and beta for a LayerNorm's
weight and bias. ALBEF reads BERT's first layers into the text encoder and the others into the
fusion encoder, whose cross-attention stays fresh (ALBEF section 3.1); ImageBERT has one stream.
"""

import re

import numpy as np

from albef_jax.errors import UserError
from albef_jax.weights.foreign.fill import Plan, check_settings
from albef_jax.weights.report import Report
from albef_jax.weights.foreign.salesforce import embeddings_table, layer_table, words_table

FRESH = -1  # in config.init.bert_layers
IGNORED = {
    r"bert\.embeddings\.position_ids": "positions are counted",
    r"bert\.pooler\..*": "no pooler",
    r"cls\.seq_relationship\..*": "no next-sentence task",
}
WORDS = "bert.embeddings.word_embeddings.weight"
HEAD = "cls.predictions"


def plan(config, tensors, settings, part, words):
    """How a BERT file fills a part of the parameters.

    Args:
      config: a whole config. tensors: name -> array. settings: the file's config.json, a dict.
      part: its name; see `Task.bert`. words: whether it has an MLM head.

    Returns:
      A `Plan`.

    Raises:
      UserError: the file's model is of another kind or size, or `init.bert_layers` has no meaning.
    """
    model, report = config.model, Report(f"{config.init.bert} -> {part}")
    names = {canonical(name): name for name in tensors}
    depth = len({m[1] for m in map(re.compile(r"bert\.encoder\.layer\.(\d+)\.").match, names) if m})
    check_settings(
        report.title, model, sizes(names, tensors, settings),
        [("model_type", settings.get("model_type"), ("bert",)),
         ("hidden_act", settings.get("hidden_act"), ("gelu",)),
         ("position_embedding_type", settings.get("position_embedding_type"), ("absolute",))])
    layers = source_layers(config, depth)
    table = embeddings_table((part, "embeddings"), "bert.embeddings")
    for place, layer in zip(places(model), layers):
        if layer != FRESH:
            table += layer_table((part, place), f"bert.encoder.layer.{layer}")
    if words and any(name.startswith(HEAD) for name in names):
        table += words_table((part, "head"), HEAD)
    mark_fresh(report, part, words, model, layers, table)
    mark_ignored(report, words, names, tensors, layers)
    entries = [entry._replace(sources=tuple(names.get(name, name) for name in entry.sources))
               for entry in table]
    return Plan(tensors, entries, report)


def canonical(name):
    """A tensor's name as newer files with a head have it."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return re.sub(r"^(?=embeddings\.|encoder\.|pooler\.)", "bert.", name)


def sizes(names, tensors, settings):
    """Fields of the model block that a file tells; None where it does not."""
    def axis(name, number):
        shape = tensors[names[name]].shape if name in names else ()
        return int(shape[number]) if len(shape) > number else None

    return {"vocab_size": axis(WORDS, 0), "text_width": axis(WORDS, 1),
            "max_positions": axis("bert.embeddings.position_embeddings.weight", 0),
            "text_mlp_width": axis("bert.encoder.layer.0.intermediate.dense.weight", 0),
            "text_heads": settings.get("num_attention_heads")}


def places(model):
    """Our layers, bottom up."""
    return [*(f"text_{i}" for i in range(model.text_layers)),
            *(f"fusion_{i}" for i in range(fusion_layers(model)))]


def fusion_layers(model):
    """How many there are; ImageBERT has none, and no such key."""
    return model.get("fusion_layers", 0)


def source_layers(config, depth):
    """For each of our layers the layer of the file, or FRESH.

    Raises:
      UserError: the file has more or fewer layers and the config does not say which go where.
    """
    wanted = len(places(config.model))
    chosen = tuple(config.init.bert_layers)
    if not chosen and depth == wanted:
        return tuple(range(depth))
    which = (f"which of {config.init.bert}'s {depth} layers (0 to {depth - 1}, or -1 for a fresh "
             f"one) each of the {wanted} text and fusion layers takes")
    if not chosen:
        raise UserError(f"init.bert_layers is empty, but {config.init.bert} has {depth} layers and "
                        f"the model {wanted} (model.text_layers + model.fusion_layers); set it to "
                        f"{which}.")
    if len(chosen) != wanted or not all(FRESH <= layer < depth for layer in chosen):
        raise UserError(f"init.bert_layers is {chosen}; it must say {which}.")
    return chosen


def mark_fresh(report, part, words, model, layers, table):
    """Names the rule of every parameter that no tensor fills."""
    for i in range(fusion_layers(model)):
        cross = layer_table((f"fusion_{i}",), "", cross=True)
        for entry in cross:
            if entry.path[1] == "cross":
                report.fresh((part, *entry.path), "BERT has no cross-attention")
    for place, layer in zip(places(model), layers):
        if layer == FRESH:
            for entry in layer_table((part, place), ""):
                report.fresh(entry.path, "init.bert_layers says -1")
    if words and not any(entry.path[1] == "head" for entry in table):
        for entry in words_table((part, "head"), ""):
            report.fresh(entry.path, "the file has no MLM head")


def mark_ignored(report, words, names, tensors, layers):
    """Names the rule of every tensor that is left out on purpose."""
    for name, original in names.items():
        for pattern, rule in IGNORED.items():
            if re.fullmatch(pattern, name):
                report.ignore(original, rule)
        if name.startswith(HEAD) and not words:
            report.ignore(original, "the task predicts no words")
        number = re.match(r"bert\.encoder\.layer\.(\d+)\.", name)
        if number and int(number[1]) not in layers:
            report.ignore(original, "not in init.bert_layers")
    for copy, tied in ((f"{HEAD}.decoder.weight", WORDS),
                       (f"{HEAD}.decoder.bias", f"{HEAD}.bias")):
        if copy not in names or tied not in names:
            continue
        if np.array_equal(tensors[names[copy]], tensors[names[tied]]):
            report.ignore(names[copy], f"tied to {names[tied]}")
        else:
            report.wrong(names[copy], f"differs from {names[tied]}, which is the same tensor here")
