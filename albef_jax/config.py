"""Configs: the common part and a task's own, reading a config file with overrides, checking."""

import ast
from collections.abc import Mapping
import copy
import json
import pathlib
import re
import runpy
from typing import NamedTuple

from ml_collections import ConfigDict

from albef_jax.core.optim import CHOICES as OPTIMIZER_CHOICES, DEFAULTS as OPTIMIZER
from albef_jax.errors import UserError, running, shown, wanted
from albef_jax.files import absolute_name, local_copy
from albef_jax.tasks import task_class

MESH_AXES = ("data", "fsdp", "model", None)
# The blocks that a task adds to; see `Task.defaults`.
TASK_BLOCKS = ("model", "init", "objective", "optimizer", "data")
STAGE_BLOCKS = ("data", "objective", "optimizer")  # in which the stages of a run may differ
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
# What `check_values` leaves to others: blocks of any keys, tuples of pairs or of blocks.
OTHERS = ("data.source", "evals", "rules", "stages", *PAIRS)


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
        # What differs from here in each stage of a run, one after the other: dicts with `name`,
        # `steps` or `epochs`, and of the blocks `data`, `objective` and `optimizer` the keys that
        # do.
        stages=(),
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
                        best_mode="max", checksums=True)))
    for block, values in task_class(task).defaults().items():
        config[block] = ConfigDict({**config.get(block, {}), **values})
    config.lock()
    config.evals.unlock()  # blocks by name, as many as wanted; evaluators check their options
    return config


class Stage(NamedTuple):
    """A part of a run with a config of its own; `name` is '' where a run is in one piece."""

    name: str
    config: ConfigDict


def stages_of(config):
    """The `Stage`s of a config in order: itself, where it has none.

    Raises:
      UserError: a stage has a key that does not exist or may not differ, or a value of another
        type.
    """
    if not isinstance(config.stages, (tuple, list)):
        raise UserError(f"config.stages is {shown(config.stages)}; give a tuple of dicts.")
    if not config.stages:
        return [Stage("", config)]
    return [_stage(config, f"config.stages[{number}]", values)
            for number, values in enumerate(config.stages)]


def _stage(config, where, values):
    known = ("name", "steps", "epochs", *STAGE_BLOCKS)
    if not isinstance(values, Mapping) or not values or values.keys() - {*known}:
        raise UserError(f"{where} is {shown(values)}; give a dict with keys of "
                        f"{', '.join(known)}.")
    stage = config.copy_and_resolve_references().unlock()
    stage.stages = ()
    if "epochs" in values:
        stage.steps = 0
    _take(stage, where, {key: value for key, value in values.items() if key != "name"})
    return Stage(str(values.get("name", where)), stage.lock())


def _take(block, where, values):
    """Sets the values of a block, and of the blocks in it, that exist there already."""
    for key, value in values.items():
        if key not in block:
            raise UserError(f"{where}.{key} does not exist; the keys there are "
                            f"{', '.join(block)}.")
        try:
            if isinstance(block[key], ConfigDict) and key != "source":
                _take(block[key], f"{where}.{key}", value)
            else:  # a source is of another kind, with other keys
                block[key] = ConfigDict(value) if isinstance(value, Mapping) else value
        except (AttributeError, TypeError) as error:
            raise UserError(f"{where}.{key} is a {type(block[key]).__name__}; {value!r} is "
                            "not.") from error


def of_stages(stages):
    """The config of a run, of its `Stage`s with everything filled in that data decides.

    Its own values are those of the last stage, whose weights it leaves; its steps are all.
    """
    config = stages[-1].config
    if stages[0].name == "":
        return config
    config = config.copy_and_resolve_references().unlock()
    config.steps = sum(stage.config.steps for stage in stages)
    config.stages = tuple(
        {"name": name, "steps": own.steps, **{block: own[block].to_dict()
                                              for block in STAGE_BLOCKS}}
        for name, own in stages)
    return config.lock()


def borders(config):
    """Name of each stage of a run -> the number of steps after which it begins."""
    begins, done = {}, 0
    for values in config.stages:
        begins[values["name"]] = done
        done += values["steps"]
    return begins


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
    config.stages = copy.deepcopy(config.stages)
    blocks = [config.data.source, *config.evals.values()]
    for stage in config.stages:  # of which nothing is checked yet
        data = stage.get("data") if isinstance(stage, Mapping) else None
        blocks.append(data.get("source") if isinstance(data, Mapping) else None)
    for block in blocks:
        if isinstance(block, (ConfigDict, dict)) and isinstance(block.get("kind"), str):
            block["kind"] = absolute_name(block["kind"])
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
    if parents[:1] == ["stages"]:
        _set_stage(config, parents[1:] + [leaf], text)
        return
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


def _set_stage(config, keys, text):
    """Sets a value of a stage, as `stages.0.optimizer.peak_lr`; it may be new there."""
    number, *parents, leaf = keys
    if not number.isdigit() or int(number) >= len(config.stages) or not leaf:
        raise UserError(f"config.stages has no {number!r}; it has {len(config.stages)} stages, "
                        "and keys look like --config.stages.0.steps=100.")
    stages = copy.deepcopy(config.stages)
    block = stages[int(number)]
    for parent in parents:
        block = block.setdefault(parent, {})
    try:
        block[leaf] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        block[leaf] = text
    config.stages = stages
    stages_of(config)  # refuses what does not fit


def check_config(config):
    """Checks a config, each stage of it, before anything is read: every key's type, range and what
    fits together.

    Raises:
      UserError: naming the key and what it may be.
    """
    if config.stages:  # what every stage says itself, too
        check_keys(config)
        check_data(config)
    for name, own in stages_of(config):
        try:
            _check(own)
        except UserError as error:
            raise UserError(f"In the stage {name!r}: {error}" if name else str(error)) from None
    names = [name for name, _ in stages_of(config)]
    if len({*names}) < len(names):
        raise UserError(f"config.stages have the names {', '.join(names)}; give each its own.")


def check_keys(config):
    """As `check_config`, each key of its own: type, range and form; nothing of sources and evals."""
    task, own = task_class(config.task), default_config(config.task)
    # The fields of the defaults: those of this config may not be made of wrong values.
    of_fields = {f"data.{name}": limit for field in task.fields(own).values()
                 for name, limit in field.limits.items()}
    check_values(config, own, LIMITS | of_fields | task.limits, CHOICES | task.choices)
    check_patterns(config.optimizer)
    check_rules(config.rules, task.logical_axes)
    for field in task.fields(config).values():
        field.check()


def _check(config):
    from albef_jax.evaluators import check_block  # not every command needs evaluators

    check_keys(config)
    task_class(config.task).check(config)
    check_data(config)
    for name, block in config.evals.items():
        check_block(name, block, config)
    best = config.checkpoint.best_metric
    if best and best.split("/")[0] not in config.evals:
        raise UserError(f"checkpoint.best_metric is {best!r}, but config.evals has no such block; "
                        f"it has {', '.join(config.evals) or 'none'}.")


def check_data(config):
    """UserError where the block of the data source is wrong."""
    from albef_jax.data.sources import check_source  # not every command needs data

    check_source(config.data.source, "config.data.source")


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

    Raises:
      ValueError: it is no JSON, or not that of a config.
    """
    def tuples(value):
        if isinstance(value, list):
            return tuple(tuples(item) for item in value)
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return value

    stored = json.loads(text)
    if not isinstance(stored, dict) or not isinstance(stored.get("task"), str):
        raise ValueError(f"{text[:40]!r} names no task")
    stored = ConfigDict(tuples(stored))
    config = default_config(stored.task).unlock()
    for name, value in stored.items():
        if isinstance(config.get(name), ConfigDict) and not isinstance(value, ConfigDict):
            raise ValueError(f"its {name} is {shown(value)}")
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
        if (blocks := (_as_block(before), _as_block(now))) and None not in blocks:
            changed |= differences(*blocks, f"{prefix}{key}.")
        elif before != now:
            changed[prefix + key] = before, now
    return changed


def _as_block(value):
    """What has values of its own, as a mapping: a block, or a tuple of dicts; None otherwise."""
    if isinstance(value, (ConfigDict, Mapping)):
        return value
    if isinstance(value, tuple) and value and all(isinstance(item, Mapping) for item in value):
        return {str(number): item for number, item in enumerate(value)}
    return None
