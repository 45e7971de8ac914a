"""BERT weights in the layout of Hugging Face: text encoder, fusion encoder and MLM head.

Tensors are called `bert.embeddings...`, `bert.encoder.layer.N...` and `cls.predictions...`; the
first part is left out in files without a head, and old files say gamma and beta for a LayerNorm's
weight and bias. ALBEF reads BERT's first layers into the text encoder and the others into the
fusion encoder, whose cross-attention stays fresh (ALBEF section 3.1); ImageBERT has one stream.
"""

import numpy as np

from albef_jax.errors import UserError, listed
from albef_jax.weights.foreign.fill import EncoderFile
from albef_jax.weights.foreign.salesforce import (
    depth, embeddings_table, layer_table, words_table)

ENCODER = "text_encoder"
FRESH = -1  # in config.init.bert_layers
RENAMED = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^(?=embeddings\.|encoder\.|pooler\.)", "bert."),
)
SETTINGS = {"model_type": ("bert",), "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute",)}
IGNORED = {
    r"bert\.embeddings\.position_ids": "positions are counted",
    r"bert\.pooler\..*": "no pooler",
    r"cls\.seq_relationship\..*": "no next-sentence task",
    r"(classifier|qa_outputs)\..*": "the head of another task",
}
WORDS = "bert.embeddings.word_embeddings.weight"
HEAD = "cls.predictions"


def fill(config, tensors, settings, leaves):
    """See `foreign.fill`; a UserError too where `init.bert_layers` has no meaning."""
    model = config.model
    places = [*(f"text_{i}" for i in range(model.text_layers)),  # bottom up
              *(f"fusion_{i}" for i in range(model.fusion_layers))]
    file = EncoderFile(f"{config.init.bert} -> {ENCODER}", tensors, settings, RENAMED)
    file.check(model, sizes(file), SETTINGS)
    count = depth(file.names, r"bert\.encoder\.layer\.(\d+)\.")
    if not count:
        raise UserError(f"{config.init.bert} has no tensors bert.encoder.layer.0... but "
                        f"{listed(file.tensors, 3)}; give BERT's weights in the layout of Hugging "
                        "Face.")
    layers = source_layers(config, count)
    table = embeddings_table((ENCODER, "embeddings"), "bert.embeddings")
    fresh, ignored = {}, dict(IGNORED)
    for place, layer in zip(places, layers):
        if layer == FRESH:
            fresh[place] = "init.bert_layers says -1"
        else:
            table += layer_table((ENCODER, place), f"bert.encoder.layer.{layer}")
    if not any(path[1] == "head" for path in leaves):
        ignored[rf"{HEAD}\..*"] = "the task predicts no words"
    elif any(name.startswith(HEAD) for name in file.names):
        table += words_table((ENCODER, "head"), HEAD)
    else:
        fresh["head"] = "the file has no MLM head"
    for path in leaves:
        if path[2] == "cross":
            file.report.fresh(path, "BERT has no cross-attention")
        elif path[1] in fresh:
            file.report.fresh(path, fresh[path[1]])
    file.ignore(ignored | {rf"bert\.encoder\.layer\.{layer}\..*": "not in init.bert_layers"
                           for layer in range(count) if layer not in layers})
    check_tied(file, f"{HEAD}.decoder.weight", WORDS, config.init.bert_tie)
    check_tied(file, f"{HEAD}.decoder.bias", f"{HEAD}.bias", config.init.bert_tie)
    return file.fill(table, leaves, model.get("patch_size")), file.report


def sizes(file):
    """Fields of the model block that a file tells; None where it does not."""
    words, width = file.shape(WORDS, 2)
    return {"vocab_size": words, "text_width": width,
            "max_positions": file.shape("bert.embeddings.position_embeddings.weight", 2)[0],
            "text_mlp_width": file.shape("bert.encoder.layer.0.intermediate.dense.weight", 2)[0],
            "text_heads": file.settings.get("num_attention_heads")}


def source_layers(config, count):
    """For each of our layers the layer of the file, or FRESH."""
    wanted = config.model.text_layers + config.model.fusion_layers
    chosen = tuple(config.init.bert_layers)
    if not chosen and count == wanted:
        return tuple(range(count))
    which = (f"which of {config.init.bert}'s {count} layers (0 to {count - 1}, or -1 for a fresh "
             f"one) each of the {wanted} text and fusion layers takes")
    if not chosen:
        raise UserError(f"init.bert_layers is empty, but {config.init.bert} has {count} layers and "
                        f"the model {wanted} (model.text_layers + model.fusion_layers); set it to "
                        f"{which}.")
    if len(chosen) != wanted or not all(FRESH <= layer < count for layer in chosen):
        raise UserError(f"init.bert_layers is {chosen}; it must say {which}.")
    return chosen


def check_tied(file, copy, tied, anyway):
    """Leaves out a tensor that is another one once more, or is to be; see `init.bert_tie`."""
    copy, tied = file.names.get(copy), file.names.get(tied)
    if copy is None or tied is None:
        return
    if np.array_equal(file.tensors[copy], file.tensors[tied]):
        file.report.ignore(copy, f"tied to {tied}")
    elif anyway:
        file.report.ignore(copy, f"{tied} is taken instead (init.bert_tie)")
    else:
        file.report.wrong(copy, f"differs from {tied}, which is the same tensor here; "
                                "init.bert_tie=True takes the latter for both")
