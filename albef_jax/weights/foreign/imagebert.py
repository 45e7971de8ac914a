"""ImageBERT weights under Hugging Face's names of BERT, and names like these for the rest.

There is no published checkpoint. The layout is a BERT (`bert.*`, `cls.predictions.*`), the
embeddings of regions (`visual_embeddings.*`; of a whole image `global_embeddings.*`) and linear
heads (`moc_head`, `mrfr_head`, `itm_head`).

| kind | what it is |
|---|---|
| `imagebert_pretrain` | everything |
| `imagebert_retrieval` | without the heads for what is masked; a file may have them |
"""

import dataclasses

from albef_jax.config import default_config, with_task
from albef_jax.weights.foreign.salesforce import (
    Entry, depth, embeddings_table, layer_table, linear, norm, shape_of, shapes_there, words_table)
from albef_jax.weights.stored import state_shapes

WORDS, HEAD = "bert.embeddings.word_embeddings.weight", "cls.predictions"
TIED = {f"{HEAD}.decoder.weight": WORDS, f"{HEAD}.decoder.bias": f"{HEAD}.bias"}
EMBEDDINGS = {"region_embeddings": "visual_embeddings", "global_embeddings": "global_embeddings"}


@dataclasses.dataclass(frozen=True)
class ImageBertKind:
    """The names of one kind of model; see `kinds.Kind`.

    Attributes:
      name: as in the module's table; also `config.task`.
    """

    name: str
    layout = "imagebert"
    wrapper = ""  # files hold the state dict itself
    memory = ()
    optional = True
    attention = (("text_heads", "text_width"),)

    def fresh_config(self):
        """A config of such a model, unlocked."""
        return default_config(self.name).unlock()

    def check(self, config):
        """See `kinds.Kind.check`; there is nothing that sizes do not tell."""

    def table(self, config):
        """Entries of a whole state, with paths from `params` down."""
        there = state_shapes(config)
        entries = (entry._replace(path=("params", *entry.path))
                   for entry in whole_table(config.model))
        return [entry for entry in entries if entry.path in there]

    def tied(self, config):
        """Official name -> the name of the tensor that it is a second name of."""
        has_words = ("params", "bert", "head", "bias") in state_shapes(config)
        return TIED if has_words else {}

    def buffers(self, config):
        """Official name -> value of what is no parameter; there is none."""
        del config
        return {}

    def unused(self, config):
        """Official name -> (shape, why) of what a checkpoint may have and the model does not read.
        """
        read = {name for entry in self.table(config) for name in entry.sources}
        whole = with_task(config, "imagebert_pretrain").lock()
        leaves, shapes = state_shapes(whole), {}
        for entry in ImageBertKind(whole.task).table(whole):
            shapes |= zip(entry.sources, map(tuple, shapes_there(entry, leaves[entry.path].shape)))
        shapes |= {name: shapes[first] for name, first in TIED.items()}
        return {name: (shape, "a head of pre-training") for name, shape in shapes.items()
                if name not in read | self.tied(config).keys()}

    def sizes(self, tensors, path):
        """What a state dict says about the model; see `kinds.Kind.sizes`."""
        def shape(name, axes=2):
            return shape_of(tensors, name, axes, self, path)

        vocab, width = shape(WORDS)
        found = {
            "vocab_size": vocab, "text_width": width,
            "max_positions": shape("bert.embeddings.position_embeddings.weight")[0],
            "text_layers": depth(tensors, r"bert\.encoder\.layer\.(\d+)\."),
            "text_mlp_width": shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
            "regions_width": shape("visual_embeddings.feature_projection.weight")[1]}
        if "moc_head.weight" in tensors or self.name == "imagebert_pretrain":
            found["classes"] = shape("moc_head.weight")[0]
        if of_whole("feature_projection.weight") in tensors:
            found["global_width"] = shape(of_whole("feature_projection.weight"))[1]
        return found, 0


def is_imagebert(tensors):
    """Whether a state dict is one of this layout, by its names."""
    return any(name.startswith("visual_embeddings.") for name in tensors)


def detect(tensors):
    """The kind of such a state dict."""
    return "imagebert_pretrain" if "moc_head.weight" in tensors else "imagebert_retrieval"


def of_whole(name):
    """The official name of a tensor that embeds the feature of a whole image."""
    return f"{EMBEDDINGS['global_embeddings']}.{name}"


def whole_table(model):
    """Entries of every parameter that a model may have. `model`: a config's model block."""
    table = embeddings_table(("bert", "embeddings"), "bert.embeddings")
    for i in range(model.text_layers):
        table += layer_table(("bert", f"text_{i}"), f"bert.encoder.layer.{i}")
    table += words_table(("bert", "head"), HEAD)
    for ours, theirs in EMBEDDINGS.items():
        table += linear((ours, "feature"), f"{theirs}.feature_projection")
        table += linear((ours, "location"), f"{theirs}.location_projection")
        table.append(Entry((ours, "position"), (f"{theirs}.position_embeddings.weight",), "copy"))
        table += norm((ours, "norm"), f"{theirs}.LayerNorm")
    for head in ("moc_head", "mrfr_head", "itm_head"):
        table += linear((head,), head)
    return table


KINDS = (ImageBertKind("imagebert_pretrain"), ImageBertKind("imagebert_retrieval"))
