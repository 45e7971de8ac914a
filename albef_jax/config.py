"""Configs: the common part and a task's own, reading a config file with overrides, checking."""

import ast
import json
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from albef_jax.core.optim import CHOICES as OPTIMIZER_CHOICES, DEFAULTS as OPTIMIZER
from albef_jax.errors import UserError, running, shown, wanted
from albef_jax.files import absolute_name, local_copy
from albef_jax.tasks import task_class

MESH_AXES = ("data", "fsdp", "model", None)
# The blocks that a task adds to; see `Task.defaults`.
TASK_BLOCKS = ("model", "init", "objective", "optimizer", "data")
# Types are those of the defaults. Dotted key -> (least, most), a most of None for what a device can
# hold: of a number, or of each number of a tuple. Tasks and fields have their own.
LIMITS = {
    "seed": (0, 2**32 - 1), "batch_size": (1, None), "group_size": (1, None),
    "accumulation": (1, None), "steps": (0, None), "epochs": (0, None), "log_every": (0, None),
    "mesh.data": (-1, None), "mesh.fsdp": (-1, None), "mesh.model": (-1, None),
    "mesh.slices": (1, None), "data.workers": (0, 4096), "data.max_bad_share": (0.0, 1.0),
    "data.examples": (0, None), "checkpoint.every": (0, None), "checkpoint.keep_latest": (1, None),
    "checkpoint.keep_every": (0, None),
    "optimizer.warmup_steps": (0, None), "optimizer.warmup_share": (0.0, 1.0),
    "optimizer.steps_per_epoch": (0, None),
    "optimizer.peak_lr": (0.0, None), "optimizer.min_lr": (0.0, None),
    "optimizer.warmup_lr": (0.0, None), "optimizer.weight_decay": (0.0, None),
    "optimizer.b1": (0.0, 0.999999), "optimizer.b2": (0.0, 0.999999),  # 1: 0 / 0
    "optimizer.eps": (0.0, None), "optimizer.clip_norm": (0.0, None)}
# Dotted key -> the values that it may have.
CHOICES = {"matmul_precision": ("default", "high", "highest"),
           "checkpoint.best_mode": ("max", "min")} | OPTIMIZER_CHOICES
# Of pairs in `optimizer`, a pattern of paths and a number: the limits of the number.
PAIRS = {"optimizer.lr_factors": (0.0, None), "optimizer.clip_parts": (1, None)}
# What `check_values` leaves to others: blocks of any keys, and tuples of pairs.
OTHERS = ("data.source", "evals", "rules", *PAIRS)


def default_config(task="pretrain"):
    """A config of a task with the official sizes and hyper-parameters, without data.

    The files in configs/ change what they need. Counts are in steps of the global batch; EMA,
    queue and warm-up are meant for `batch_size` 512 (docs/training.md on scaling them).
    """
    config = ConfigDict(dict(
        task=task, seed=0,
        batch_size=512,  # global
        group_size=64,  # examples that are compared with each other
        accumulation=1,  # micro-steps per step
        steps=0, epochs=30,  # without steps, `epochs` passes over the data
        log_every=50,
        wandb="",  # name of a Weights & Biases project
        matmul_precision="default",  # 'highest' for full float32 on accelerators
        mesh=dict(  # devices; -1: the rest
            data=-1, fsdp=1,  # both split the batch, fsdp also the state
            model=1,  # splits layers
            slices=1),  # TPU slices on a slower network; they divide `data`
        # Logical axes of parameters (parallel/axes.py) and the mesh axes that split them.
        rules=(("embed", "fsdp"), ("mlp", "model"), ("heads", "model"), ("vocab", "model")),
        model={}, objective={}, optimizer=OPTIMIZER,
        data=dict(
            source=dict(kind="json", files=(), image_roots=(), merge_images=False),
            max_bad_share=0.01,  # of examples that cannot be read
            workers=0,  # threads; 0: one per core
            examples=0,  # in an epoch, for `albef plan`, which reads no data
            fingerprint=""),  # of the source; set when training starts
        evals={},
        checkpoint=dict(every=5000, keep_latest=2, keep_every=0, best_metric="",
                        best_mode="max")))
    for block, values in task_class(task).defaults().items():
        config[block] = ConfigDict({**config.get(block, {}), **values})
    config.lock()
    config.evals.unlock()  # blocks by name, as many as wanted; evaluators check their options
    return config


def with_task(config, task):
    """The config of another task, with the values of this one wherever it has the same key."""
    def take(new, old):
        for key in new:
            if key in old and key != "task":
                if isinstance(new[key], ConfigDict) and key != "source":
                    take(new[key], old[key])
                else:
                    new[key] = old[key]

    other = default_config(task)
    take(other, config)
    other.evals = config.evals
    return other


def load_config(path, overrides=()):
    """The locked config of `FILE.py[:variant]`, which has `get_config(variant=None)`.

    A file that says `VARIANTS = ("name", ...)` is asked for one of these only.

    Args:
      overrides: strings `--config.key=value`; values are Python literals or plain text.

    Raises:
      UserError: missing file or function, unknown variant or key, or a value of another type; a
        `CodeError` where the file itself fails.
    """
    name, variant = re.fullmatch(r"((?:\w+://)?[^:]*):?(.*)", str(path), re.DOTALL).groups()
    local = local_copy(name)
    if not pathlib.Path(local).is_file():
        raise UserError(f"The config file {name} does not exist; give the path of a file such as "
                        "configs/flickr8k.py.")
    with running(local):
        module = runpy.run_path(local)
    if (get_config := module.get("get_config")) is None:
        raise UserError(f"The config file {name} has no function get_config(variant=None); "
                        "configs/own_data.py is an example.")
    known = module.get("VARIANTS")
    if variant and known is not None and variant not in known:
        raise UserError(f"The config file {name} has no variant {variant!r}; it has "
                        f"{', '.join(known) or 'none'}.")
    with running(local):
        config = get_config(variant or None)
    check_blocks(config, f"get_config of {name}")
    return anchored(apply_overrides(config.lock(), overrides))


def check_blocks(config, where):
    """Raises UserError where what `where` gives lacks keys or blocks of a config of its task."""
    if not isinstance(config, ConfigDict) or "task" not in config:
        raise UserError(f"{where} must return a config, such as default_config() gives with its "
                        f"keys set; it returns {shown(config)}.")

    def check(block, own, prefix):
        for key, value in own.items():
            if key not in block:
                raise UserError(f"{where} returns a config without config.{prefix}{key}; start "
                                "from albef_jax.config.default_config().")
            if isinstance(value, ConfigDict):
                if not isinstance(block[key], ConfigDict):
                    raise UserError(f"{where} returns {shown(block[key])} as config.{prefix}{key}, "
                                    "which is a block; set its keys instead.")
                if f"{prefix}{key}" not in OTHERS:
                    check(block[key], value, f"{prefix}{key}.")

    check(config, default_config(config.task), "")


def anchored(config):
    """The config with absolute paths where it names classes in files: it may be read elsewhere."""
    config.task = absolute_name(config.task)
    for block in (config.data.source, *(config.evals[name] for name in config.evals)):
        if isinstance(block, ConfigDict) and isinstance(block.get("kind"), str):
            block.kind = absolute_name(block.kind)
    return config


def apply_overrides(config, overrides):
    """Sets values of a locked config by `--config.key=value`; UserError if they do not fit it."""
    for override in overrides:
        key, equals, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not equals:
            raise UserError(f"The argument {override!r} is not understood; overrides look like "
                            "--config.batch_size=64.")
        if key == "task":  # it decides which keys there are
            config = with_task(config, text)
        else:
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
        if isinstance(value, bool) and isinstance(block[leaf], float):
            raise TypeError  # it would become 1.0 or 0.0
        block[leaf] = value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise UserError(f"config.{key} is a {type(block[leaf]).__name__} "
                        f"({block[leaf]!r}); {shown(text)} is not.") from error


def check_config(config):
    """Checks a config before anything is read: every key's type, range and what fits together.

    Raises:
      UserError: naming the key and what it may be.
    """
    from albef_jax.data.sources import check_source  # not every command needs data
    from albef_jax.evaluators import check_block

    task, own = task_class(config.task), default_config(config.task)
    # The fields of the defaults: those of this config may not be made of wrong values.
    of_fields = {f"data.{name}": limit for field in task.fields(own).values()
                 for name, limit in field.limits.items()}
    check_values(config, own, LIMITS | of_fields | task.limits, CHOICES | task.choices)
    check_patterns(config.optimizer)
    check_rules(config.rules, task.logical_axes)
    for field in task.fields(config).values():
        field.check()
    task.check(config)
    check_source(config.data.source, "config.data.source")
    for name, block in config.evals.items():
        check_block(name, block, config)
    best = config.checkpoint.best_metric
    if best and best.split("/")[0] not in config.evals:
        raise UserError(f"checkpoint.best_metric is {best!r}, but config.evals has no such block; "
                        f"it has {', '.join(config.evals) or 'none'}.")


def check_values(config, own, limits, choices, prefix=""):
    """Raises UserError at a value of another type than its default, out of limits or no choice.

    Args:
      config: a config or block. own: the defaults of the same, whose keys are looked at.
      limits, choices: by dotted key; see `LIMITS`. prefix: of the block's keys.
    """
    for key, default in own.items():
        name, value = f"{prefix}{key}", config.get(key)
        if isinstance(default, ConfigDict) and name != "data.source":  # that may be a text
            if not isinstance(value, ConfigDict):
                raise UserError(f"config.{name} is {shown(value)}; it must be a block of keys.")
        if name in OTHERS:
            continue
        if isinstance(default, ConfigDict):
            check_values(value, default, limits, choices, f"{name}.")
        elif words := wanted(value, default, limits.get(name), choices.get(name)):
            raise UserError(f"config.{name} is {shown(value)}; it must be {words}.")


def check_patterns(optimizer):
    """Raises UserError where patterns of paths, or the numbers beside them, cannot be used."""
    patterns = [("optimizer.no_decay", pattern) for pattern in optimizer.no_decay]
    for key, limit in PAIRS.items():
        what = f"a pattern of paths and {wanted(None, limit[0], limit)}"
        for pair in pairs_of(f"config.{key}", optimizer[key.rpartition(".")[2]], what):
            if wanted(pair[0], "") or wanted(pair[1], limit[0], limit):
                raise UserError(f"config.{key} has {shown(pair)}; give pairs of {what}.")
            patterns.append((key, pair[0]))
    for key, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.{key} has {pattern!r}, which is no regular expression "
                            f"({error}).") from None


def check_rules(rules, logical_axes):
    """Raises UserError where `config.rules` are no pairs of a logical axis and one of the mesh."""
    pair = f"one of {logical_axes} and one of {MESH_AXES}"
    for rule in pairs_of("config.rules", rules, pair):
        if rule[0] not in logical_axes or rule[1] not in MESH_AXES:
            raise UserError(f"config.rules has {shown(rule)}; give pairs of {pair}.")


def pairs_of(key, value, what):
    """The pairs that a value is; UserError with `what` they should be."""
    sequence = (tuple, list)
    if not isinstance(value, sequence):
        raise UserError(f"{key} is {shown(value)}; give a tuple of pairs of {what}.")
    for item in value:
        if not isinstance(item, sequence) or len(item) != 2:
            raise UserError(f"{key} has {shown(item)}; give pairs of {what}.")
    return value


def to_json(config):
    """The config as stable JSON text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=list)


def from_json(text):
    """The config of `to_json`; sequences come back as tuples.

    Keys that came into existence after it was written have their defaults, those that are gone
    are left out.
    """
    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(item) for item in value)
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return value

    stored = ConfigDict(tuples(json.loads(text)))
    config = default_config(stored.task).unlock()
    for name, value in stored.items():
        if name in TASK_BLOCKS or name in ("mesh", "checkpoint"):
            for key in set(value) & set(config[name]):
                config[name][key] = value[key]  # `update` would merge sources of two kinds
        else:
            config[name] = value
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
