"""Wrong values of every key of the official configs: one sentence each, before anything is read."""

import functools
import inspect
import math
import operator
import random

from ml_collections import ConfigDict
import pytest

from albef_jax.config import (
    LIMITS, apply_overrides, check_config, default_config, load_config,
)
from albef_jax.data.sources import resolve_source
from albef_jax.errors import UserError
from albef_jax.evaluators import COMMON_OPTIONS, evaluator_class
from albef_jax.tasks import TASKS, task_class
from tests.test_configs import CONFIGS, VARIANTS

NAN, INF, HUGE = math.nan, math.inf, 10**12
WRONG = {  # by the type of what is there
    bool: (None, "many", 7, NAN, ({},)),
    int: (None, "many", True, NAN, INF, -77, HUGE, 2.5, ({},), "0"),
    float: (None, "many", True, NAN, INF, -INF, -7.0, 1e300, ({},)),
    str: (None, 3, True, NAN, ("a",), {}),
    tuple: (None, 3, True, NAN, (NAN,), ({},), ((None,),), {"a": 1}),
    ConfigDict: (None, 3, "many", True, NAN, ({},))}
# Keys whose zero has no meaning.
SIZES = ("batch_size", "group_size", "accumulation", "slices", "keep_latest", "image_size", "width",
         "layers", "depth", "heads", "length", "max_positions", "embed_dim", "vocab_size", "size",
         "k", "ratio", "temperature")
CHANGES = 300


def keys_of(config):
    """Dotted keys, with a value of the right type; options of sources and evaluators too."""
    def walk(block, prefix):
        for key, value in block.items():
            yield f"{prefix}{key}", value
            if isinstance(value, ConfigDict) and key != "source":
                yield from walk(value, f"{prefix}{key}.")

    yield from walk(config, "")
    sources = {"data.source": config.data.source}
    for name, block in config.evals.items():
        sources[f"evals.{name}.source"] = block.source
        for key, (default, _) in (COMMON_OPTIONS | evaluator_class(block.kind).options).items():
            yield f"evals.{name}.{key}", default
    for prefix, block in sources.items():
        if isinstance(block, ConfigDict):
            kind, options = resolve_source(block)
            for key, parameter in inspect.signature(kind).parameters.items():
                yield f"{prefix}.{key}", options.get(key, parameter.default)


def wrong_values(config):
    """(key, value) of everything that could be wrong."""
    for key, value in keys_of(config):
        kind = type(tuple(value) if isinstance(value, list) else value)
        for wrong in WRONG.get(kind, ()):
            if wrong == "0":
                wrong = 0
                if not key.endswith(SIZES) or key.endswith(("queue_size", "eval_text_length")):
                    continue
            yield key, wrong


def said(config, key, value):
    """What is said of a value; given on the command line where a number is, else in a file."""
    config, (*blocks, leaf) = config.copy_and_resolve_references(), key.split(".")
    try:
        block = functools.reduce(operator.getitem, blocks, config)
        if isinstance(value, bool | str) and isinstance(block.get(leaf), int | float):
            config = apply_overrides(config, [f"--config.{key}={value}"])
        else:
            with config.unlocked(), config.ignore_type():
                block[leaf] = value
        check_config(config)
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def every():
    """(name, config, key, value) of all official configs."""
    found = []
    for path in CONFIGS:
        for variant in VARIANTS.get(path.name, (None,)):
            try:
                config = load_config(f"{path}:{variant or ''}")
            except ModuleNotFoundError:  # weights that are not installed
                continue
            found += [(path.name, config, *change) for change in wrong_values(config)]
    return found


def test_wrong_values_end_in_one_sentence(every):
    failures = []
    for name, config, key, value in random.Random(0).sample(every, CHANGES):
        try:
            sentence = said(config, key, value) or "accepted"
        except Exception as error:  # would be a traceback
            sentence = f"{error!r}\n"
        if "\n" in sentence or key.rpartition(".")[2] not in sentence or sentence[-1] != ".":
            failures.append(f"{name}: {key}={value!r}: {sentence}")
    print(f"{CHANGES - len(failures)} of {CHANGES} wrong values end in one sentence")
    assert not failures, "\n".join(failures)


def test_every_number_has_limits():
    """Types and finiteness come from the defaults; ranges must be said."""
    for name in TASKS:
        task, own = task_class(name), default_config(name)
        fields = {f"data.{key}" for field in task.fields(own).values() for key in field.limits}
        known = {*LIMITS, *task.limits, *fields}
        numbers = {key for key, value in keys_of(own) if not key.startswith("data.source")
                   and isinstance(value, int | float) and not isinstance(value, bool)}
        assert not numbers - known - task.choices.keys(), name
