"""ViT weights in the layouts of timm (also DeiT's own files) and of Hugging Face.

timm's names are those of the public ALBEF code. Hugging Face keeps query, key and value apart and
has had two sets of names; `canonical` maps both to timm's.
"""

import re

import numpy as np

from albef_jax.errors import UserError
from albef_jax.models.resample import resize_positions
from albef_jax.weights.foreign.fill import Plan, check_settings
from albef_jax.weights.report import Report
from albef_jax.weights.foreign.salesforce import vit_table

ENCODER = "visual_encoder"
RENAMED = [(re.compile(pattern), name) for pattern, name in (
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
)]
IGNORED = {
    r"(head|head_dist|classifier|cls_classifier|distillation_classifier)\..*":
        "no classes are predicted",
    r"(pooler|pre_logits)\..*": "no pooler",
    r"mask_token": "no masked patches",
    r"dist_token": "no distillation token; its position is left out too",
}


def plan(config, tensors, settings):
    """How a ViT file fills `visual_encoder`.

    Args:
      config: a whole config. tensors: name -> array. settings: the file's config.json, a dict.

    Returns:
      A `Plan`.

    Raises:
      UserError: the file's model is of another kind or size.
    """
    model, report = config.model, Report(f"{config.init.vit} -> {ENCODER}")
    names = {canonical(name): name for name in tensors}
    check_settings(report.title, model, sizes(names, tensors, settings), [
        ("model_type", settings.get("model_type"), ("vit", "deit")),
        ("hidden_act", settings.get("hidden_act"), ("gelu",))])
    for name, original in names.items():
        for pattern, rule in IGNORED.items():
            if re.fullmatch(pattern, name):
                report.ignore(original, rule)
    table = [entry._replace(sources=tuple(original for source in entry.sources
                                          for original in originals(source, names)))
             for entry in vit_table(model.vit_depth)]
    return Plan(with_positions(tensors, names, model, report), table, report)


def canonical(name):
    """A tensor's name in timm; query, key and value as `blocks.N.attn.query...`."""
    for pattern, new in RENAMED:
        name = pattern.sub(new, name)
    return name


def originals(source, names):
    """The file's names of an official tensor: one, or three for a separate query, key, value."""
    name = source.removeprefix(f"{ENCODER}.")
    apart = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
    if ".qkv." in name and apart[0] in names:
        return [names.get(part, part) for part in apart]
    return [names.get(name, name)]


def sizes(names, tensors, settings):
    """Fields of the model block that a file tells; None where it does not."""
    def shape(name):
        return tensors[names[name]].shape if name in names else ()

    patch, mlp = shape("patch_embed.proj.weight"), shape("blocks.0.mlp.fc1.weight")
    blocks = {m[1] for m in map(re.compile(r"blocks\.(\d+)\.").match, names) if m}
    return {"vit_width": patch[0] if len(patch) == 4 else None, "vit_depth": len(blocks) or None,
            "patch_size": patch[-1] if len(patch) == 4 else None,
            "vit_mlp_ratio": mlp[0] / mlp[1] if len(mlp) == 2 and mlp[1] else None,
            "vit_heads": settings.get("num_attention_heads")}


def with_positions(tensors, names, model, report):
    """The tensors, the position embeddings those of [CLS] and of the model's patches.

    Raises:
      UserError: the file's patches are not a square.
    """
    original = names.get("pos_embed")
    if original is None or tensors[original].ndim != 3:
        return tensors  # the report says what is wrong
    positions = np.asarray(tensors[original], np.float32)
    extra = 1 if "dist_token" in names else 0  # the distillation token stands after [CLS]
    side = round(max(positions.shape[1] - 1 - extra, 0) ** 0.5)
    if positions.shape[1] != 1 + extra + side * side:
        raise UserError(f"{report.title}: {original} has {positions.shape[1]} positions, which is "
                        f"not {1 + extra} and a square of patches; only square images with one "
                        "position for [CLS] are supported.")
    positions = np.concatenate([positions[:, :1], positions[:, 1 + extra:]], axis=1)
    wanted = model.image_size // model.patch_size
    if side != wanted:
        report.interpolate(f"{ENCODER}/pos_embed", f"{side} x {side} patches",
                           f"{wanted} x {wanted} (bicubic)")
    return {**tensors, original: resize_positions(positions, wanted)}
