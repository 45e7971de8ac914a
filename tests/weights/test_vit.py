"""ViT weights in timm's and Hugging Face's layouts, other resolutions, and what does not fit."""

import json

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from albef_jax.config import load_config
from albef_jax.errors import UserError
from albef_jax.tasks import make_task
from albef_jax.weights import pretrained
from albef_jax.models.resample import resize_positions
from albef_jax.weights.foreign.torch_writer import write_torch_file

BLOCK = {  # timm's names and shapes of one block, width 32 and MLP 64
    "norm1": (32,), "norm2": (32,), "attn.qkv": (96, 32), "attn.proj": (32, 32),
    "mlp.fc1": (64, 32), "mlp.fc2": (32, 64)}
SETTINGS = dict(model_type="vit", hidden_act="gelu", num_attention_heads=2)


def timm(side=4, extra=0):
    """A state dict of timm with random values, PyTorch layout; `extra` tokens besides [CLS]."""
    shapes = {"cls_token": (1, 1, 32), "pos_embed": (1, 1 + extra + side * side, 32)}
    modules = {"patch_embed.proj": (32, 3, 8, 8), "norm": (32,), "head": (10, 32)}
    modules |= {f"blocks.0.{name}": shape for name, shape in BLOCK.items()}
    if extra:
        shapes["dist_token"] = (1, 1, 32)
        modules["head_dist"] = (10, 32)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def apart(tensors, query, key, value):
    """Hugging Face has three tensors for timm's `qkv`; the names are those of one block."""
    split = {}
    for kind in ("weight", "bias"):
        parts = np.split(tensors[f"blocks.0.attn.qkv.{kind}"], 3)
        split |= {f"{name}.{kind}": part for name, part in zip((query, key, value), parts)}
    return split


def hugging_face(tensors, prefix="vit.", block="encoder.layer.0.", classifier="classifier",
                 query="attention.attention.query", key="attention.attention.key",
                 value="attention.attention.value", proj="attention.output.dense",
                 fc1="intermediate.dense", fc2="output.dense"):
    """The same model under Hugging Face's names; the defaults are those of transformers 4."""
    root = prefix + block
    names = {
        "cls_token": f"{prefix}embeddings.cls_token",
        "pos_embed": f"{prefix}embeddings.position_embeddings",
        "dist_token": f"{prefix}embeddings.distillation_token",
        "patch_embed.proj": f"{prefix}embeddings.patch_embeddings.projection",
        "norm": f"{prefix}layernorm", "head": classifier, "head_dist": "distillation_classifier",
        "blocks.0.norm1": f"{root}layernorm_before", "blocks.0.norm2": f"{root}layernorm_after",
        "blocks.0.attn.proj": root + proj, "blocks.0.mlp.fc1": root + fc1,
        "blocks.0.mlp.fc2": root + fc2}
    found = apart(tensors, root + query, root + key, root + value)
    for name, array in tensors.items():
        module, _, kind = name.rpartition(".")
        if name in names:
            found[names[name]] = array
        elif module in names:
            found[f"{names[module]}.{kind}"] = array
    return found


def version_5(tensors):
    return hugging_face(tensors, block="layers.0.", query="attention.q_proj",
                        key="attention.k_proj", value="attention.v_proj",
                        proj="attention.o_proj", fc1="mlp.fc1", fc2="mlp.fc2")


def bare(tensors):
    """ViTModel: no prefix, a pooler instead of a classifier."""
    found = hugging_face(tensors, prefix="", classifier="pooler.dense")
    return found | {"embeddings.mask_token": np.zeros((1, 1, 32), np.float32)}


def of_the_paper(tensors, heads=2):
    """The same model as the ViT paper's files have it: other names, and axes of their own."""
    def kernel(name):
        return tensors[f"{name}.weight"].T

    block, source = "Transformer/encoderblock_0/", "blocks.0."
    found = {"cls": tensors["cls_token"], "embedding/bias": tensors["patch_embed.proj.bias"],
             "embedding/kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
             "Transformer/posembed_input/pos_embedding": tensors["pos_embed"],
             "head/kernel": kernel("head"), "head/bias": tensors["head.bias"],
             "pre_logits/kernel": np.ones((32, 32), np.float32), "pre_logits/bias": np.ones(32)}
    for ours, theirs in (("Transformer/encoder_norm", "norm"),
                         (f"{block}LayerNorm_0", f"{source}norm1"),
                         (f"{block}LayerNorm_2", f"{source}norm2")):
        found[f"{ours}/scale"] = tensors[f"{theirs}.weight"]
        found[f"{ours}/bias"] = tensors[f"{theirs}.bias"]
    for ours, theirs in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        found[f"{block}MlpBlock_3/{ours}/kernel"] = kernel(f"{source}mlp.{theirs}")
        found[f"{block}MlpBlock_3/{ours}/bias"] = tensors[f"{source}mlp.{theirs}.bias"]
    attention = f"{block}MultiHeadDotProductAttention_1"
    for part, weight, bias in zip(
            ("query", "key", "value"), np.split(kernel(f"{source}attn.qkv"), 3, axis=1),
            np.split(tensors[f"{source}attn.qkv.bias"], 3)):
        found[f"{attention}/{part}/kernel"] = weight.reshape(32, heads, -1)
        found[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
    found[f"{attention}/out/kernel"] = kernel(f"{source}attn.proj").reshape(heads, -1, 32)
    return found | {f"{attention}/out/bias": tensors[f"{source}attn.proj.bias"]}


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(make_task(load_config("tests/tiny.py")).init)(jax.random.key(0))


@pytest.fixture
def give(tmp_path, fresh):
    """`give(tensors)` writes a model folder; -> image encoder of a run that starts so, report."""
    def make(tensors, settings=SETTINGS):
        folder = tmp_path / "vit"
        folder.mkdir(exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()},
                  folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(settings))
        config = load_config("tests/tiny.py", [f"--config.init.vit={folder}"])
        params, report = pretrained.apply(config, fresh, tokenizer=None)
        for part in set(fresh) - {"visual_encoder"}:
            assert params[part] is fresh[part]
        return flatten_dict(params["visual_encoder"]), report

    return make


def in_our_layout(tensors):
    """timm -> our leaves by path; written out, not by a table."""
    def dense(name, *path):
        return {(*path, "kernel"): tensors[f"{name}.weight"].T,
                (*path, "bias"): tensors[f"{name}.bias"]}

    def norm(name, *path):
        return {(*path, "scale"): tensors[f"{name}.weight"],
                (*path, "bias"): tensors[f"{name}.bias"]}

    patches = tensors["patch_embed.proj.weight"]  # [out, channel, row, column]
    return {
        ("cls_token",): tensors["cls_token"], ("pos_embed",): tensors["pos_embed"],
        ("patch_embed", "kernel"): np.stack([
            patches[:, channel, row, column] for row in range(8) for column in range(8)
            for channel in range(3)]),
        ("patch_embed", "bias"): tensors["patch_embed.proj.bias"],
        **norm("norm", "norm"),
        **norm("blocks.0.norm1", "block_0", "norm1"), **norm("blocks.0.norm2", "block_0", "norm2"),
        **dense("blocks.0.attn.qkv", "block_0", "attn", "qkv", "dense"),
        **dense("blocks.0.attn.proj", "block_0", "attn", "proj"),
        **dense("blocks.0.mlp.fc1", "block_0", "mlp", "fc1"),
        **dense("blocks.0.mlp.fc2", "block_0", "mlp", "fc2")}


@pytest.mark.parametrize("layout", [
    dict, hugging_face, version_5, bare,
    lambda tensors: hugging_face(tensors, prefix="deit.", classifier="cls_classifier"),
    lambda tensors: {f"module.{name}": array for name, array in tensors.items()},
    lambda tensors: {f"module.head.{i}.weight": np.ones(3, np.float32) for i in range(2)} | {
        f"module.backbone.{name}": array for name, array in tensors.items()},
    of_the_paper,
], ids=["timm", "transformers 4", "transformers 5", "bare", "deit", "module", "dino", "paper"])
def test_every_layout_gives_the_same_encoder(give, layout):
    tensors = timm()
    found, report = give(layout(tensors))
    expected = in_our_layout(tensors)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, str(path))
    assert "0 fresh" in report and "interpolated" not in report


@pytest.mark.parametrize("layout", [dict, lambda tensors: hugging_face(tensors, prefix="deit.")],
                         ids=["timm", "transformers"])
def test_a_distilled_deit_leaves_its_extra_token_out(give, layout):
    tensors = timm(extra=1)
    found, report = give(layout(tensors), SETTINGS | {"model_type": "deit"})
    positions = tensors["pos_embed"]
    np.testing.assert_array_equal(
        found["pos_embed",], np.concatenate([positions[:, :1], positions[:, 2:]], axis=1))
    assert "no distillation token; its position is left out too" in report


def test_another_resolution_is_interpolated_and_said(give):
    tensors = timm(side=7)
    found, report = give(tensors)
    assert "interpolated: visual_encoder/pos_embed from 7 x 7 patches to 4 x 4" in report
    np.testing.assert_array_equal(found["pos_embed",], resize_positions(tensors["pos_embed"], 4))
    np.testing.assert_array_equal(found["pos_embed",][:, 0], tensors["pos_embed"][:, 0])


def test_a_single_file(give, fresh, tmp_path):
    tensors = timm()
    expected, _ = give(tensors)
    path = tmp_path / "vit" / "model.safetensors"
    config = load_config("tests/tiny.py", [f"--config.init.vit={path}"])
    found = flatten_dict(pretrained.apply(config, fresh, None)[0]["visual_encoder"])
    for leaf in expected:
        np.testing.assert_array_equal(found[leaf], expected[leaf])


def test_a_deit_file(give, fresh, tmp_path):
    """DeiT's own files are `{"model": state_dict}`."""
    tensors = timm()
    expected, _ = give(tensors)
    write_torch_file(tmp_path / "deit.pth", tensors)
    config = load_config("tests/tiny.py", [f"--config.init.vit={tmp_path / 'deit.pth'}"])
    found = flatten_dict(pretrained.apply(config, fresh, None)[0]["visual_encoder"])
    for leaf in expected:
        np.testing.assert_array_equal(found[leaf], expected[leaf])


@pytest.mark.parametrize("name, mark", [("paper.npz", ""), ("dino.pth", "::teacher")])
def test_other_files(give, fresh, tmp_path, name, mark):
    tensors, path = timm(), tmp_path / name
    expected, _ = give(tensors)
    if mark:
        write_torch_file(path, tensors, wrapper="teacher")
    else:
        np.savez(path, **of_the_paper(tensors))
    config = load_config("tests/tiny.py", [f"--config.init.vit={path}{mark}"])
    found = flatten_dict(pretrained.apply(config, fresh, None)[0]["visual_encoder"])
    for leaf in expected:
        np.testing.assert_array_equal(found[leaf], expected[leaf])


def test_weights_that_do_not_fit(give):
    tensors = timm()

    def fails(changed, *words, settings=SETTINGS):
        with pytest.raises(UserError) as error:
            give({name: array for name, array in (tensors | changed).items() if array is not None},
                 settings)
        assert all(word in str(error.value) for word in words), error.value

    proj = "blocks.0.attn.proj.weight"
    fails({proj: None}, "1 missing", proj)
    fails({"blocks.0.ls1.gamma": np.ones(32, np.float32)}, "1 unknown", "blocks.0.ls1.gamma")
    fails({proj: tensors[proj][:, :8]}, proj, "has shape [32, 8], not [32, 32]")
    fails({proj: np.full((32, 32), np.inf, np.float32)}, proj, "infinity")
    fails({"pos_embed": np.full((1, 26, 32), np.nan, np.float32)}, "pos_embed", "NaN")
    fails({"pos_embed": None}, "1 missing", "pos_embed")
    fails({"pos_embed": tensors["pos_embed"][:, 1:]}, "a square of patches and none for "
          "[CLS]; put one before them")
    fails({"pos_embed": tensors["pos_embed"][:, 1:-1]}, "15 positions, which is not 1 and a square")
    fails({"fc_norm.weight": np.ones(32, np.float32)}, "has fc_norm", "that reads [CLS]")
    fails({"patch_embed.proj.weight": np.zeros((32, 3, 16, 16), np.float32)},
          "model.patch_size=16 (here 8)")
    fails({f"blocks.1.{name[9:]}": tensors[name] for name in tensors if name[:9] == "blocks.0."},
          "model.vit_depth=2 (here 1)")
    fails({}, "model.vit_heads=4 (here 2)", settings=SETTINGS | {"num_attention_heads": 4})
    fails({}, "model_type is 'swin'", settings=SETTINGS | {"model_type": "swin"})
