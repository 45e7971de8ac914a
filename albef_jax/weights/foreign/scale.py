"""SCALE weights in the layout of the released PyTorch code (M5Product), read in both directions.

| kind | what it is |
|---|---|
| `scale_pretrain` | five masked tasks and contrast |
| `scale_classify` | classes of products: the same tensors, and `dense1`, `dense2` |

The released model holds tensors that its forward pass never reads: encoders and embeddings of
table and video, whose place others take, and earlier poolers and weights. What the model of a
config does not read is left out by a rule with a name (`ScaleKind.unused`); it is kept beside an
import, so that an export of it is the same file again.
"""

import dataclasses
import re

from albef_jax.config import default_config, with_task
from albef_jax.models.scale import MODALITIES
from albef_jax.tasks import task_class
from albef_jax.tasks.scale import as_released
from albef_jax.weights.foreign.salesforce import (
    Entry, depth, embeddings_table, layer_table, linear, norm, shape_of, shapes_there, words_table)
from albef_jax.weights.stored import state_shapes

# Our name of a modality -> what its encoder, its projection and its masked head are called there.
ENCODERS = {"title": "layer", "table": "pv_layer", "regions": "v_layer", "video": "video_layer",
            "audio": "audio_layer"}
PROJECTIONS = {"title": "t_pooler", "table": "pv_pooler", "regions": "v_pooler",
               "video": "video_pooler", "audio": "audio_pooler"}
HEADS = {"regions": "imagePredictions", "video": "videoPredictions", "audio": "audioPredictions"}
EMBEDDINGS = {"title": "bert.embeddings", "table": "bert.pv_embeddings",
              "regions": "bert.v_embeddings", "video": "bert.video_embeddings",
              "audio": "bert.audio_embedding"}
BLOCKS = "bert.cross_encoder.transformer.resblocks"
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
# The first that matches the name of a tensor says why nothing reads it.
WHY_UNUSED = tuple((re.compile(pattern), rule) for pattern, rule in (
    (r"bert\.(cross_encoder\.pooler|(t|pv|v|video)_pooler)\.", "a pooler that nothing reads"),
    (r"cls\.(v|t|vil)_weight_fc\.", "weights of modalities that nothing reads"),
    (r"bert\.pv_embeddings\.", "the table is embedded as the title"),
    (r"bert\.encoder\.pv_layer\.", "the table goes through the title's encoder"),
    (r"bert\.encoder\.video_layer\.", "the video goes through the image's encoder"),
    (r"cls\.|bert\.encoder\.\w+_pooler\.", "a head of pre-training"),
    (r"", "of a modality that model.modalities leaves out")))


@dataclasses.dataclass(frozen=True)
class ScaleKind:
    """The released names of one kind of model; see `kinds.Kind`.

    Attributes:
      name: as in the module's table; also `config.task`. trunk: where our trunk is.
      classifier: with `dense1` and `dense2`.
    """

    name: str
    trunk: tuple[str, ...] = ()
    classifier: bool = False
    layout = "scale"
    wrapper = ""  # files hold the state dict itself
    memory = ()
    optional = False
    attention = (("text_heads", "width"), ("visual_heads", "width"), ("jct_heads", "width"))

    def fresh_config(self):
        """The released model's config."""
        return as_released(default_config(self.name).unlock())

    def check(self, config):
        """Inputs must not be longer than the tables of positions; see `kinds.Kind.check`."""
        task_class(self.name).check(config)

    def table(self, config):
        """Entries of a whole state, with paths from `params` down."""
        root, there = ("params", *self.trunk), state_shapes(config)
        table = [entry._replace(path=(*root, *entry.path)) for entry in trunk_table(config.model)]
        if self.classifier:
            table += linear(("params", "hidden"), "dense1") + linear(("params", "classes"),
                                                                     "dense2")
        return [entry for entry in table if entry.path in there]

    def tied(self, config):
        """Official name -> the name of the tensor that it is a second name of."""
        named = {name for entry in self.table(config) for name in entry.sources}
        return {DECODER: WORDS} if WORDS in named else {}

    def buffers(self, config):
        """Official name -> value of what is no parameter; there is none."""
        del config
        return {}

    def unused(self, config):
        """Official name -> (shape, why) of what such a checkpoint has and the model does not read.

        The `why` says which of its parts or switches is responsible.
        """
        read = {name for entry in self.table(config) for name in entry.sources}
        return {name: (shape, next(why for pattern, why in WHY_UNUSED if pattern.match(name)))
                for name, shape in released_shapes(config).items()
                if name not in read | self.tied(config).keys()}

    def sizes(self, tensors, path):
        """What a state dict says about the model; see `kinds.Kind.sizes`."""
        def shape(name, axes=2):
            return shape_of(tensors, name, axes, self, path)

        def features(name):
            return shape(f"{EMBEDDINGS[name]}.{feature_layer(name)}.weight")[1]

        vocab, width = shape(WORDS)
        found = {
            "vocab_size": vocab, "width": width,
            "max_positions": shape("bert.embeddings.position_embeddings.weight")[0],
            "max_video": shape("bert.video_embeddings.position_embeddings.weight")[0],
            "max_audio": shape("bert.audio_embedding.position_embeddings.weight")[0],
            "max_jct": shape("bert.cross_encoder.embeddings.position_embeddings.weight")[0],
            "layers": depth(tensors, r"bert\.encoder\.layer\.(\d+)\."),
            "text_mlp_width": shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
            "visual_mlp_width": shape("bert.encoder.v_layer.0.intermediate.dense.weight")[0],
            "jct_layers": depth(tensors, re.escape(BLOCKS) + r"\.(\d+)\."),
            "jct_mlp_width": shape(f"{BLOCKS}.0.mlp.c_fc.weight")[0],
            **{f"{name}_width": features(name) for name in HEADS}}
        if self.classifier:
            found |= {"embed_dim": shape("dense1.weight")[0],
                      "classes": shape("dense2.weight")[0]}
        else:
            found["embed_dim"] = shape("bert.encoder.t_pooler.dense.weight")[0]
        return found, 0


def is_scale(tensors):
    """Whether a state dict is one of this layout, by its names."""
    return any(name.startswith("bert.cross_encoder.") for name in tensors)


def detect(tensors):
    """The kind of such a state dict."""
    return "scale_classify" if "dense1.weight" in tensors else "scale_pretrain"


def feature_layer(name):
    """The official name of the layer that embeds features, below those of `EMBEDDINGS`."""
    return "image_embeddings" if name == "regions" else f"{name}_embeddings"


def trunk_table(model):
    """Entries of every parameter that a model of these sizes may have, but a classifier's."""
    table = []
    for name in MODALITIES.values():
        ours, theirs = (f"embeddings_{name}",), EMBEDDINGS[name]
        if name in HEADS:
            table += linear((*ours, "feature"), f"{theirs}.{feature_layer(name)}")
            table += linear((*ours, "box"), f"{theirs}.image_location_embeddings")
            table.append(Entry((*ours, "position"), (f"{theirs}.position_embeddings.weight",),
                               "copy"))
            table += norm((*ours, "norm"), f"{theirs}.LayerNorm")
            table += head_table(name)
        else:
            table += embeddings_table(ours, theirs)
        for i in range(model.layers):
            table += layer_table((f"encoders_{name}_{i}",), f"bert.encoder.{ENCODERS[name]}.{i}")
        table += linear((f"projections_{name}",), f"bert.encoder.{PROJECTIONS[name]}.dense")
    return table + words_table(("masked_heads_words",), "cls.predictions") + jct_table(model)


def head_table(name):
    """Entries of the masked head of a modality of features."""
    ours, theirs = (f"masked_heads_{name}",), f"cls.{HEADS[name]}"
    return [*linear((*ours, "dense"), f"{theirs}.transform.dense"),
            *norm((*ours, "norm"), f"{theirs}.transform.LayerNorm"),
            *linear((*ours, "output"), f"{theirs}.decoder")]


def jct_table(model):
    """Entries of the Joint Co-Transformer."""
    table = [Entry(("jct_position",), (
        "bert.cross_encoder.embeddings.position_embeddings.weight",), "copy")]
    for i in range(model.jct_layers):
        ours, theirs = (f"jct_{i}",), f"{BLOCKS}.{i}"
        table += [
            *norm((*ours, "norm1"), f"{theirs}.ln_1"),
            Entry((*ours, "attn", "qkv", "dense", "kernel"), (f"{theirs}.attn.in_proj_weight",),
                  "linear"),
            Entry((*ours, "attn", "qkv", "dense", "bias"), (f"{theirs}.attn.in_proj_bias",),
                  "join"),
            *linear((*ours, "attn", "proj"), f"{theirs}.attn.out_proj"),
            *norm((*ours, "norm2"), f"{theirs}.ln_2"),
            *linear((*ours, "mlp", "fc1"), f"{theirs}.mlp.c_fc"),
            *linear((*ours, "mlp", "fc2"), f"{theirs}.mlp.c_proj")]
    return table


def released_shapes(config):
    """Official name -> shape of every tensor of pre-training but tied ones, used or not.

    Args:
      config: of any kind of SCALE model.
    """
    whole = with_task(config, "scale_pretrain").unlock()
    whole.model.update(modalities="".join(MODALITIES), share_encoders=False,
                       table_embeddings="own")
    leaves, shapes = state_shapes(whole.lock()), {}
    for entry in trunk_table(whole.model):
        leaf = leaves.get(("params", *entry.path))
        if leaf is not None:  # images have boxes, the others positions
            shapes |= zip(entry.sources, map(tuple, shapes_there(entry, leaf.shape)))
    d, p = whole.model.width, whole.model.embed_dim
    for name in ("t_pooler", "pv_pooler", "v_pooler", "video_pooler"):
        shapes |= {f"bert.{name}.dense.weight": (p, d), f"bert.{name}.dense.bias": (p,)}
    pooler = "bert.cross_encoder.pooler"
    shapes |= {f"{pooler}.ln_pool.weight": (d,), f"{pooler}.ln_pool.bias": (d,),
               f"{pooler}.dense.weight": (d, d), f"{pooler}.dense.bias": (d,)}
    for name in ("v_weight_fc", "t_weight_fc"):
        shapes |= {f"cls.{name}.weight": (1, p), f"cls.{name}.bias": (1,)}
    return shapes | {"cls.vil_weight_fc.weight": (p, 2 * p), "cls.vil_weight_fc.bias": (p,)}


KINDS = (ScaleKind("scale_pretrain"), ScaleKind("scale_classify", ("trunk",), True))
