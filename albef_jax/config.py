"""Configs: the default one, reading a config file with overrides, and checking it."""

import ast
import json
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from albef_jax.errors import UserError
from albef_jax.files import local_copy

# Activations that can be kept where layers are recomputed, named in models/layers.py and bert.py.
REMAT_POINTS = ("qkv", "attention", "mlp")
# What `rules` may say: names of parallel/axes.py, and axes of the mesh.
LOGICAL_AXES = ("embed", "mlp", "heads", "vocab", "queue")
MESH_AXES = ("data", "fsdp", "model", None)

def default_config():
    """ALBEF pre-training with the official sizes and hyper-parameters, without data.

    The files in configs/ change what they need. Counts are in steps of the global batch; EMA,
    queue and warm-up are meant for `batch_size` 512 (docs/training.md on scaling them).
    """
    config = ConfigDict()
    config.task = "pretrain"
    config.seed = 0
    config.batch_size = 512  # global
    config.group_size = 64  # pairs that are compared with each other
    config.accumulation = 1  # micro-steps per step
    config.steps = 0  # 0: `epochs` passes over the data
    config.epochs = 30
    config.log_every = 50
    config.wandb = ""  # name of a Weights & Biases project
    config.matmul_precision = "default"  # 'highest' for full float32 on accelerators
    config.mesh = dict(  # devices; -1: the rest
        data=-1, fsdp=1,  # both split the batch, fsdp also the state
        model=1,  # splits layers
        slices=1)  # TPU slices on a slower network; they divide `data`
    # Logical axes of parameters (parallel/axes.py) and the mesh axes that split them.
    config.rules = (("embed", "fsdp"), ("mlp", "model"), ("heads", "model"), ("vocab", "model"))
    config.model = model = ConfigDict(dict(
        image_size=256, patch_size=16, vit_width=768, vit_depth=12, vit_heads=12,
        vit_mlp_ratio=4.0,
        text_width=768, text_layers=6, fusion_layers=6, text_heads=12, text_mlp_width=3072,
        max_positions=512, embed_dim=256, dropout=0.1, attention_dropout=0.1, dtype="bfloat16",
        init_std=0.02,  # of fresh encoder weights; narrow models want 0.02 sqrt(768 / width)
        scan=False,  # layers as a loop: compiles sooner
        remat=False,  # less memory: activations inside a layer are computed twice
        remat_save=(),  # but not these of REMAT_POINTS
        # Set from the tokenizer when training starts.
        vocab_size=30522, pad_id=0, cls_id=101, mask_id=103))
    config.init = dict(  # weights that a fresh run starts from; a resumed one has its own
        bert="",  # a folder or a Hugging Face name; the tokenizer must be that model's
        bert_layers=(),  # its layer for each text and fusion layer, -1: fresh; (): one to one
        vit="")  # a file, a folder or a Hugging Face name; positions are interpolated
    config.objective = dict(
        itc=True, temperature=0.07, momentum=0.995,
        queue_size=65536,  # past features that ITC compares with; 0: the own group only
        positives="pair",  # 'image': captions of the same image are positives too
        negatives="hard",  # 'random'
        alpha_itc=0.4, alpha_mlm=0.4,
        alpha=0.4,  # of answers and classes, in the tasks that learn these
        alpha_ramp_steps=-1,  # -1: one epoch
        mask_rate=0.15, mask_replace=(0.8, 0.1, 0.1),
        mlm_budget=0)  # predicted positions per group; 0: the mean plus six deviations
    config.optimizer = dict(
        peak_lr=1e-4, min_lr=1e-5, warmup_lr=1e-5, warmup_steps=2000,
        schedule="cosine",  # 'albef_steps': the stepped schedule of the public code
        steps_per_epoch=0,  # of 'albef_steps'; 0: from the data
        weight_decay=0.02, b1=0.9, b2=0.999, eps=1e-8)
    config.data = dict(
        source=ConfigDict(dict(kind="json", files=(), image_roots=(), merge_images=False)),
        engine="auto", image_size=model.get_oneway_ref("image_size"),
        crop_scale=(0.2, 1.0), flip=0.5, randaugment=(2, 7),
        text_length=25, max_words=30, sep=False,
        eval_text_length=0, eval_max_words=0,  # in evaluation; 0: the same
        answer_length=10, max_answers=10,  # tokens, [CLS] and [SEP] included; answers per question
        blind=False,  # black images: what the texts alone give away
        tokenizer="",  # a Hugging Face name or a folder; '': train one on the captions
        vocab_size=30522,  # of a trained one, at most
        max_bad_share=0.01, workers=0,
        examples=0,  # in an epoch, for `albef plan`, which reads no data
        fingerprint="")  # of the source; set when training starts
    config.evals = ConfigDict()
    config.checkpoint = dict(every=5000, keep_latest=2, keep_every=0, best_metric="",
                             best_mode="max")
    config.lock()
    config.evals.unlock()  # blocks by name, as many as wanted; evaluators check their fields
    return config


def load_config(path, overrides=()):
    """Reads `FILE.py[:variant]` and applies `--config.key=value` overrides.

    Args:
      path: a Python file with `get_config(variant=None)`.
      overrides: strings `--config.key=value`; values are Python literals or plain text.

    Returns:
      A locked ConfigDict.

    Raises:
      UserError: missing file or function, unknown key or a value of another type.
    """
    name, variant = re.fullmatch(r"((?:\w+://)?[^:]*):?(.*)", str(path), re.DOTALL).groups()
    local = local_copy(name)
    if not pathlib.Path(local).is_file():
        raise UserError(f"The config file {name} does not exist; give the path of a file such as "
                        "configs/flickr8k.py.")
    get_config = runpy.run_path(local).get("get_config")
    if get_config is None:
        raise UserError(f"The config file {name} has no function get_config(variant=None); "
                        "configs/own_data.py is an example.")
    try:
        config = get_config(variant or None).lock()
    except (AttributeError, KeyError, TypeError) as error:  # what ConfigDict raises
        raise UserError(f"get_config of {name} failed: {error}") from error
    return apply_overrides(config, overrides)


def apply_overrides(config, overrides):
    """Sets values of a locked config from `--config.key=value` strings, and returns it.

    Raises:
      UserError: unknown key or a value of another type.
    """
    for override in overrides:
        key, equals, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not equals:
            raise UserError(f"The argument {override!r} is not understood; overrides look like "
                            "--config.batch_size=64.")
        _set(config, key, text)
    return config


def _set(config, key, text):
    *parents, leaf = key.split(".")
    block = config
    for parent in parents:
        block = block.get(parent) if isinstance(block, ConfigDict) else None
    if not isinstance(block, ConfigDict) or leaf not in block:
        known = ", ".join(block) if isinstance(block, ConfigDict) else ", ".join(config)
        raise UserError(f"config.{key} does not exist; the keys there are {known}.")
    if isinstance(block[leaf], ConfigDict):
        if leaf == "source":  # a short form, such as tfds:NAME:SPLIT
            from albef_jax.data.sources import parse_source  # not every command needs data

            block[leaf] = parse_source(text)
            return
        raise UserError(f"config.{key} is a block; set one of its keys: "
                        f"{', '.join(block[leaf])}.")
    try:
        value = text if isinstance(block[leaf], str) else ast.literal_eval(text)
        block[leaf] = value
    except (ValueError, SyntaxError, TypeError) as error:
        raise UserError(f"config.{key} is a {type(block[leaf]).__name__} "
                        f"({block[leaf]!r}); {text!r} is not.") from error


# Least values; a float is also a share, at most 1.
LEAST = {
    "": dict(steps=0, epochs=0, log_every=0),
    "data": dict(text_length=2, max_words=1, eval_text_length=0, eval_max_words=0,
                 answer_length=3, max_answers=1, workers=0, flip=0.0, max_bad_share=0.0),
    "model": dict(patch_size=1, vit_depth=1, vit_heads=1, text_layers=1, text_heads=1,
                  fusion_layers=1, embed_dim=1, dropout=0.0, attention_dropout=0.0),
    "objective": dict(queue_size=0, mlm_budget=0, mask_rate=0.0, momentum=0.0, alpha_itc=0.0,
                      alpha_mlm=0.0, alpha=0.0),
    "optimizer": dict(warmup_steps=0, steps_per_epoch=0),
    "checkpoint": dict(every=0, keep_every=0),
}


def check_values(config):
    """Checks each value by itself, and that the best checkpoint can be known.

    Raises:
      UserError: naming the field and what it may be.
    """
    for block, fields in LEAST.items():
        for name, least in fields.items():
            value = (config[block] if block else config)[name]
            share = isinstance(least, float)
            if value < least or (share and value > 1):
                key = f"config.{block}.{name}" if block else f"config.{name}"
                wanted = "from 0 to 1" if share else f"at least {least}"
                raise UserError(f"{key} is {value}; it must be {wanted}.")
    scale = config.data.crop_scale
    if len(scale) and not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        raise UserError(f"data.crop_scale is {scale}; give the least and the largest share of the "
                        "image to keep, such as (0.2, 1.0), or () for whole images.")
    if len(config.data.randaugment) != 2:
        raise UserError(f"data.randaugment is {config.data.randaugment}; give the number of "
                        "operations and the magnitude, such as (2, 7).")
    shares = config.objective.mask_replace
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"objective.mask_replace is {shares}; give three shares that sum to 1, "
                        "such as (0.8, 0.1, 0.1).")
    for rule in config.rules:
        if len(rule) != 2 or rule[0] not in LOGICAL_AXES or rule[1] not in MESH_AXES:
            raise UserError(f"config.rules has {rule!r}; give pairs of one of {LOGICAL_AXES} and "
                            f"one of {MESH_AXES}.")
    best = config.checkpoint.best_metric
    if best and best.split("/")[0] not in config.evals:
        raise UserError(f"checkpoint.best_metric is {best!r}, but config.evals has no such block; "
                        f"it has {', '.join(config.evals) or 'none'}.")


def check_model(config):
    """Checks sizes that must divide each other.

    Raises:
      UserError: naming the fields and the values that would fit.
    """
    m = config.model
    if m.image_size % m.patch_size:
        raise UserError(
            f"model.image_size {m.image_size} is not a multiple of model.patch_size "
            f"{m.patch_size}; set it to {m.image_size // m.patch_size * m.patch_size}.")
    for tower in ("vit", "text"):
        width, heads = m[f"{tower}_width"], m[f"{tower}_heads"]
        if width % heads:
            raise UserError(f"model.{tower}_width {width} is not a multiple of "
                            f"model.{tower}_heads {heads}; change one of them.")
    if config.data.image_size != m.image_size:
        raise UserError(f"data.image_size {config.data.image_size} differs from model.image_size "
                        f"{m.image_size}; set the latter alone, the former follows.")
    for name in ("text_length", "eval_text_length", "answer_length"):
        if config.data[name] > m.max_positions:
            raise UserError(
                f"data.{name} {config.data[name]} exceeds model.max_positions "
                f"{m.max_positions}; lower the first or raise the second.")
    unknown = sorted({*m.remat_save} - {*REMAT_POINTS})
    if unknown:
        raise UserError(f"model.remat_save names {unknown[0]!r}; choose of {REMAT_POINTS}.")
    if m.dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype is {m.dtype!r}; choose 'float32' or 'bfloat16'.")


def to_json(config):
    """The config as stable JSON text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=list)


def from_json(text):
    """The config of `to_json`; sequences come back as tuples.

    Values that came into existence after it was written have their defaults.
    """
    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(item) for item in value)
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return value

    config = ConfigDict(tuples(json.loads(text)))
    for name, block in default_config().items():
        if name in ("model", "objective", "data", "init", "optimizer", "checkpoint", "mesh"):
            config[name] = ConfigDict({**block, **config.get(name, {})})
    if "rules" not in config:
        config.rules = default_config().rules
    return config.lock()


def differences(old, new, prefix=""):
    """Dotted key -> (old value, new value) of everything that differs; None where absent."""
    changed = {}
    for key in sorted({*old.keys(), *new.keys()}):
        before, now = old.get(key), new.get(key)
        if isinstance(before, ConfigDict) and isinstance(now, ConfigDict):
            changed |= differences(before, now, f"{prefix}{key}.")
        elif before != now:
            changed[prefix + key] = before, now
    return changed
