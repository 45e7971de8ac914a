"""Configs: the common part and a task's own, reading a config file with overrides, checking."""

import ast
import json
import math
import pathlib
import re
import runpy

from ml_collections import ConfigDict

from albef_jax.core.optim import CHOICES, DEFAULTS as OPTIMIZER
from albef_jax.errors import UserError
from albef_jax.files import absolute_name, local_copy
from albef_jax.tasks import task_class

MESH_AXES = ("data", "fsdp", "model", None)
# The blocks that a task adds to; see `Task.defaults`.
TASK_BLOCKS = ("model", "init", "objective", "optimizer", "data")
# Key -> (least, most), None for no limit. Tasks and fields have their own.
LIMITS = {
    "seed": (0, 2**32 - 1), "batch_size": (1, None), "group_size": (1, None),
    "accumulation": (1, None), "steps": (0, None), "epochs": (0, None), "log_every": (0, None),
    "mesh.slices": (1, None), "data.workers": (0, None), "data.max_bad_share": (0.0, 1.0),
    "data.examples": (0, None), "checkpoint.every": (0, None), "checkpoint.keep_every": (0, None),
    "optimizer.warmup_steps": (0, None), "optimizer.warmup_share": (0.0, 1.0),
    "optimizer.steps_per_epoch": (0, None),
    "optimizer.peak_lr": (0.0, None), "optimizer.min_lr": (0.0, None),
    "optimizer.warmup_lr": (0.0, None), "optimizer.weight_decay": (0.0, None),
    "optimizer.b1": (0.0, 1.0), "optimizer.b2": (0.0, 1.0), "optimizer.eps": (0.0, None),
    "optimizer.clip_norm": (0.0, None)}


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

    Args:
      overrides: strings `--config.key=value`; values are Python literals or plain text.

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
    return anchored(apply_overrides(config, overrides))


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
        block[leaf] = value
    except (ValueError, SyntaxError, TypeError) as error:
        raise UserError(f"config.{key} is a {type(block[leaf]).__name__} "
                        f"({block[leaf]!r}); {text!r} is not.") from error


def check_config(config):
    """Checks a config before anything is read: its common part, the task's and the fields'.

    Raises:
      UserError: naming the key and what it may be.
    """
    task = task_class(config.task)
    check_limits(config, LIMITS | task.limits)
    check_choices(config, CHOICES | task.choices)
    fields = task.fields(config)
    for field in fields.values():
        check_limits(config, {f"data.{name}": limit for name, limit in field.limits.items()})
        field.check()
    for rule in config.rules:
        if len(rule) != 2 or rule[0] not in task.logical_axes or rule[1] not in MESH_AXES:
            raise UserError(f"config.rules has {rule!r}; give pairs of one of "
                            f"{task.logical_axes} and one of {MESH_AXES}.")
    task.check(config)
    best = config.checkpoint.best_metric
    if best and best.split("/")[0] not in config.evals:
        raise UserError(f"checkpoint.best_metric is {best!r}, but config.evals has no such block; "
                        f"it has {', '.join(config.evals) or 'none'}.")


def check_limits(config, limits):
    """Raises UserError at a number out of its limits: dotted key -> (least, most or None)."""
    for key, value, (least, most) in of_config(config, limits):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and least <= value <= (most or math.inf):
            continue
        wanted = f"at least {least}" if most is None else f"from {least:g} to {most:g}"
        raise UserError(f"config.{key} is {value!r}; it must be a number, {wanted}.")


def check_choices(config, choices):
    """Raises UserError at a word that is not among its choices: dotted key -> what it may be."""
    for key, value, known in of_config(config, choices):
        if value not in known:
            *others, last = map(repr, known)
            raise UserError(f"{key} is {value!r}; choose {', '.join(others)} or {last}.")


def of_config(config, rules):
    """Yields (dotted key, value, rule) of the keys that a config has; others are another task's."""
    for key, rule in rules.items():
        block, _, name = key.rpartition(".")
        values = config.get(block, {}) if block else config
        if name in values:
            yield key, values[name], rule


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
