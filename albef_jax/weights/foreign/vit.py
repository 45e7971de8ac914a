"""ViT weights in the layouts of timm (also DeiT's own files), of Hugging Face and of the paper's JAX.

timm's names are those of the public ALBEF code. Hugging Face keeps query, key and value apart and
has had two sets of names; `RENAMED` maps both to timm's. The files of the ViT paper (`.npz`) have
other axes too; `from_jax` makes them timm's.
"""

import re

import numpy as np

from albef_jax.errors import UserError
from albef_jax.models.resample import resize_positions
from albef_jax.weights.foreign.fill import EncoderFile
from albef_jax.weights.foreign.salesforce import depth, vit_table

ENCODER = "visual_encoder"
RENAMED = (
    (r"^backbone\.", ""),  # DINO, beside a head
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.(cls|mask)_token$", r"\1_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
SETTINGS = {"model_type": ("vit", "deit"), "hidden_act": ("gelu",)}
IGNORED = {
    r"(head|head_dist|classifier|cls_classifier|distillation_classifier)\..*":
        "no classes are predicted",
    r"(pooler|pre_logits)\..*": "no pooler",
    r"mask_token": "no masked patches",
    r"dist_token": "no distillation token; its position is left out too",
}


# The names in the paper's files: of what a block has, and what stands outside.
JAX_BLOCK = r"Transformer/encoderblock_(\d+)/"
JAX_NAMES = (
    (JAX_BLOCK + r"LayerNorm_0/", r"blocks.\1.norm1."), (JAX_BLOCK + r"LayerNorm_2/",
                                                         r"blocks.\1.norm2."),
    (JAX_BLOCK + r"MultiHeadDotProductAttention_1/(query|key|value)/", r"blocks.\1.attn.\2."),
    (JAX_BLOCK + r"MultiHeadDotProductAttention_1/out/", r"blocks.\1.attn.proj."),
    (JAX_BLOCK + r"MlpBlock_3/Dense_0/", r"blocks.\1.mlp.fc1."),
    (JAX_BLOCK + r"MlpBlock_3/Dense_1/", r"blocks.\1.mlp.fc2."),
    (r"^Transformer/encoder_norm/", "norm."), (r"^embedding/", "patch_embed.proj."),
    (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"), (r"^cls$", "cls_token"),
    (r"^(head|pre_logits)/", r"\1."), (r"(kernel|scale)$", "weight"))


def from_jax(tensors):
    """The arrays of the ViT paper's own files under the names and in the axes of timm."""
    made = {}
    for name, array in tensors.items():
        for pattern, new in JAX_NAMES:
            name = re.sub(pattern, new, name)
        if re.search(r"attn\.(query|key|value)\.", name):  # [d, heads, d / heads] or [heads, ...]
            array = array.reshape(*array.shape[:name.endswith("weight")], -1)
        elif name.endswith("attn.proj.weight"):
            array = array.reshape(-1, array.shape[-1])
        if name == "patch_embed.proj.weight" and array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        made[name] = array.T if name.endswith("weight") and array.ndim == 2 else array
    return made


def fill(config, tensors, settings, leaves):
    """See `foreign.fill`."""
    model = config.model
    if "Transformer/encoder_norm/scale" in tensors:
        tensors = from_jax(tensors)
    file = EncoderFile(f"{config.init.vit} -> {ENCODER}", tensors, settings, RENAMED)
    if "fc_norm.weight" in file.names:
        raise UserError(f"{file.report.title}: the file has fc_norm, the norm of a model that "
                        "averages patches and never normalised its [CLS]; use weights of a model "
                        "that reads [CLS].")
    file.check(model, sizes(file), SETTINGS)
    file.ignore(IGNORED)
    fit_positions(file, model)
    table = [entry._replace(sources=tuple(name for source in entry.sources
                                          for name in apart(source, file.names)))
             for entry in vit_table(model.vit_depth)]
    return file.fill(table, leaves, model.patch_size), file.report


def apart(source, names):
    """timm's name of an official tensor, or three where the file has query, key and value."""
    name = source.removeprefix(f"{ENCODER}.")
    parts = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
    return parts if ".qkv." in name and parts[0] in names else [name]


def sizes(file):
    """Fields of the model block that a file tells; None where it does not."""
    width, _, _, patch = file.shape("patch_embed.proj.weight", 4)
    hidden, inputs = file.shape("blocks.0.mlp.fc1.weight", 2)
    return {"vit_width": width, "vit_depth": depth(file.names, r"blocks\.(\d+)\.") or None,
            "patch_size": patch, "vit_mlp_ratio": hidden / inputs if inputs else None,
            "vit_heads": file.settings.get("num_attention_heads")}


def fit_positions(file, model):
    """Makes the position embeddings those of [CLS] and of the model's patches."""
    count, width = file.shape("pos_embed", 3)[1:]
    if width is None:
        return  # the report says what is wrong
    original = file.names["pos_embed"]
    positions = np.asarray(file.tensors[original], np.float32)
    extra = 1 if "dist_token" in file.names else 0  # the distillation token stands after [CLS]
    side = round(max(count - 1 - extra, 0) ** 0.5)
    if count == round(count ** 0.5) ** 2 and "cls_token" in file.names:
        raise UserError(f"{file.report.title}: {original} has {count} positions, a square of "
                        "patches and none for [CLS]; put one before them, zeros where the model "
                        "added none to [CLS], and give the new file.")
    if count != 1 + extra + side * side:
        raise UserError(f"{file.report.title}: {original} has {count} positions, which is "
                        f"not {1 + extra} and a square of patches; only square images with one "
                        "position for [CLS] are supported.")
    positions = np.concatenate([positions[:, :1], positions[:, 1 + extra:]], axis=1)
    wanted = model.image_size // model.patch_size
    if side != wanted:
        file.report.interpolate(f"{ENCODER}/pos_embed", f"{side} x {side} patches",
                                f"{wanted} x {wanted} (bicubic)")
    file.tensors[original] = resize_positions(positions, wanted)
