"""The published kinds of checkpoints: what each holds, under which names.

These are ALBEF's; those of SCALE are in `scale`, those of ImageBERT in `imagebert`.

| kind | what it is |
|---|---|
| `pretrain` | ITC + ITM + MLM pre-training |
| `retrieval` | image-text retrieval; grounding checkpoints are of this kind |
| `vqa` | question answering with a text decoder |
| `nlvr_pretrain` | text assignment (TA), the pre-training of NLVR's pairs of fusion layers |
| `nlvr` | NLVR2 |
| `ve` | SNLI-VE |
"""

import dataclasses
import re

import numpy as np

from albef_jax.config import default_config
from albef_jax.errors import UserError
from albef_jax.tasks import task_class
from albef_jax.weights.foreign import imagebert, scale
from albef_jax.weights.foreign.salesforce import (
    Entry, bert_table, decoder_table, depth, linear, momentum_name, shape_of, vit_table)
from albef_jax.weights.stored import state_shapes

PROJECTIONS = ("vision_proj", "text_proj")
QUEUES = ("image_queue", "text_queue", "pointer")
MEMORY = {
    "image_queue": Entry(("memory", "image_queue"), ("image_queue",), "linear"),
    "text_queue": Entry(("memory", "text_queue"), ("text_queue",), "linear"),
    "pointer": Entry(("memory", "pointer"), ("queue_ptr",), "scalar"),
    "id_queue": Entry(("memory", "id_queue"), ("idx_queue",), "ids"),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """The public names of one kind of ALBEF model; what a state holds is known by its task."""

    name: str  # as in the module's table; also `config.task`
    bert: str = ""  # what follows `text_encoder.` in official names
    words: bool = False  # the text encoder has an MLM head
    pairs: bool = False  # two fusion layers for each of the config, and two images
    decoder: bool = False  # has a text decoder
    heads: tuple[str, ...] = ()  # linear layers besides
    classes: int = 0  # outputs of `cls_head`, 0: there is none
    temp: bool = False  # has a temperature
    memory: tuple[str, ...] = ()  # names in `TrainState.memory` that the official layout has too
    layout = "salesforce"  # of the files, as `albef export --format`
    wrapper = "model"  # key of the state dict in them
    optional = False  # what the model does not read may be left out of a file
    # Numbers of heads and the widths that they divide, in a config's model block.
    attention = (("vit_heads", "vit_width"), ("text_heads", "text_width"))

    def fresh_config(self):
        """A config of such a model, unlocked."""
        config = default_config(self.name).unlock()
        config.data.update(task_class(self.name).TEXTS)
        return config

    def check(self, config):
        """A UserError where what a checkpoint alone does not tell does not fit its sizes, once
        these are in the config."""

    def params_table(self, model):
        """Entries of the online parameters; `model` is a config's model block."""
        table = [*vit_table(model.vit_depth),
                 *bert_table(model.text_layers, model.fusion_layers, self.bert, self.words,
                             self.pairs)]
        if self.decoder:
            table += decoder_table(model.fusion_layers)
        for head in self.heads:
            table += linear((head, "dense"), head)
        if self.classes:
            table += linear(("cls_head", "fc1", "dense"), "cls_head.0")
            table += linear(("cls_head", "fc2", "dense"), "cls_head.2")
        return table + ([Entry(("temp",), ("temp",), "copy")] if self.temp else [])

    def table(self, config):
        """Entries of a whole state, with paths from `params`, `teacher` and `memory` down."""
        online, state = self.params_table(config.model), state_shapes(config)
        return [
            *(entry._replace(path=("params", *entry.path)) for entry in online),
            *(entry._replace(path=("teacher", *entry.path),
                             sources=tuple(map(momentum_name, entry.sources)))
              for entry in online if ("teacher", *entry.path) in state),
            *(MEMORY[name] for name in self.memory if ("memory", name) in state)]

    def tied(self, config):
        """Official name -> the name of the tensor that it is a second name of."""
        pairs = {}
        for part, has_words in (("text_encoder", self.words), ("text_decoder", self.decoder)):
            if has_words:
                words, head = f"{part}.bert.embeddings.word_embeddings", f"{part}.cls.predictions"
                pairs[f"{head}.decoder.weight"] = f"{words}.weight"
                pairs[f"{head}.decoder.bias"] = f"{head}.bias"
        for i in range(config.model.fusion_layers if self.pairs else 0):
            first = config.model.text_layers + 2 * i
            for leaf in ("key.weight", "key.bias", "value.weight", "value.bias"):
                one, two = (f"text_encoder.encoder.layer.{n}.crossattention.self.{leaf}"
                            for n in (first, first + 1))
                pairs[two] = one
        return pairs | {momentum_name(two): momentum_name(pairs[two])
                        for two in with_momentum(pairs, config)}

    def buffers(self, config):
        """Official name -> value of what is no parameter and always the same."""
        names = [f"text_encoder.{self.bert}embeddings.position_ids"]
        if self.decoder:
            names.append("text_decoder.bert.embeddings.position_ids")
        names += map(momentum_name, with_momentum(names, config))
        return {name: np.arange(config.model.max_positions)[None] for name in names}

    def unused(self, config):
        """Official name -> (shape, why) of what a checkpoint may have and the model does not read:
        nothing."""
        del config
        return {}

    def sizes(self, tensors, path):
        """What a state dict says about the model: values of the config's blocks `model` and `data`
        by key, and the queue size.

        Heads leave no trace in the shapes of tensors.

        Raises:
          UserError: a tensor that tells a size is missing or has another number of axes.
        """
        def shape(name, axes):
            return shape_of(tensors, name, axes, self, path)

        text = f"text_encoder.{self.bert}"
        layers = re.escape(f"{text}encoder.layer.") + r"(\d+)\."
        vit_width, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
        tokens = shape("visual_encoder.pos_embed", 3)[1]
        vocab, text_width = shape(f"{text}embeddings.word_embeddings.weight", 2)
        side = round((tokens - 1) ** 0.5)
        if side * side != tokens - 1:
            raise UserError(f"{path} has {tokens - 1} position embeddings of patches, which is no "
                            "square grid; only square images are supported.")
        fusion = depth(tensors, layers + "crossattention")
        found = {
            "vit_width": vit_width, "patch_size": patch, "image_size": side * patch,
            "vit_depth": depth(tensors, r"visual_encoder\.blocks\.(\d+)\."),
            "vit_mlp_ratio": shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0] / vit_width,
            "vocab_size": vocab, "text_width": text_width,
            "max_positions": shape(f"{text}embeddings.position_embeddings.weight", 2)[0],
            "text_layers": depth(tensors, layers) - fusion,
            "fusion_layers": fusion // 2 if self.pairs else fusion,
            "text_mlp_width": shape(f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0]}
        if "vision_proj" in self.heads:
            found["embed_dim"] = shape("vision_proj.weight", 2)[0]
        queue = max((tensors[name].size and tensors[name].shape[-1]
                     for name in ("image_queue", "text_queue")
                     if name in tensors and tensors[name].ndim), default=0)
        return found, queue


def with_momentum(names, config):
    """Those of some official names that have a momentum copy."""
    parts = {path[1] for path in state_shapes(config) if path[0] == "teacher"}
    return [name for name in names if name.split(".")[0] in parts]


KINDS = {kind.name: kind for kind in (
    Kind("pretrain", bert="bert.", words=True, heads=(*PROJECTIONS, "itm_head"), temp=True,
         memory=QUEUES),
    Kind("retrieval", heads=(*PROJECTIONS, "itm_head"), temp=True, memory=(*QUEUES, "id_queue")),
    Kind("vqa", decoder=True),
    Kind("nlvr_pretrain", pairs=True, heads=(*PROJECTIONS, "ta_head"), temp=True),
    Kind("nlvr", pairs=True, classes=2),
    Kind("ve", classes=3),
    *scale.KINDS,
    *imagebert.KINDS,
)}


def kind_of(name):
    """The kind of that name, or a UserError."""
    if name not in KINDS:
        raise UserError(f"{name!r} is no kind of published weights; choose one of "
                        f"{', '.join(KINDS)} (grounding checkpoints are 'retrieval').")
    return KINDS[name]


def detect(tensors, path):
    """The kind of a state dict, by its names; a UserError, about `path`, if they fit none or
    several."""
    if imagebert.is_imagebert(tensors):
        return imagebert.detect(tensors)
    if scale.is_scale(tensors):
        return scale.detect(tensors)
    parts = {name.split(".")[0] for name in tensors}
    if not {"visual_encoder", "text_encoder"} <= parts:
        raise UserError(f"{path} is no checkpoint of ALBEF, SCALE or ImageBERT: it has no tensors "
                        "visual_encoder.* and text_encoder.*, nor bert.cross_encoder.* or "
                        f"visual_embeddings.*, but {', '.join(sorted(parts)[:5])}; give one of "
                        "the published kinds.")
    classes = tensors["cls_head.2.weight"].shape[:1] if "cls_head.2.weight" in tensors else ()
    words = any(name.startswith("text_encoder.cls.") for name in tensors)
    fitting = [name for name, fits in {
        "vqa": "text_decoder" in parts, "nlvr_pretrain": "ta_head" in parts,
        "nlvr": classes == (2,), "ve": classes == (3,),
        "pretrain": "itm_head" in parts and words,
        "retrieval": "itm_head" in parts and "idx_queue" in parts}.items() if fits]
    if len(fitting) != 1:
        raise UserError(f"{path} could be of the kinds {', '.join(fitting or KINDS)}; say which "
                        "with --as KIND.")
    return fitting[0]
