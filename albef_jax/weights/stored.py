"""Weights in this project's own two forms: a work directory, and what `albef export` wrote."""

import functools
import os
from typing import Any, NamedTuple

from etils import epath
from flax.traverse_util import flatten_dict
import jax

from albef_jax.config import check_keys, from_json, to_json
from albef_jax.errors import UserError, first_line
from albef_jax.run.checkpoint import open_to_read
from albef_jax.run.workdir import read_config
from albef_jax.tasks import make_task, task_class
from albef_jax.weights.foreign.torch_file import read_metadata, read_tensors
from albef_jax.weights.report import Report, as_path

WEIGHTS_FILE = "model.safetensors"  # in an export folder
UNUSED_FILE = "unused.safetensors"  # in an imported work directory: what no forward pass reads
FORMAT = "albef_jax"  # in the file's metadata
PARTS = ("params", "teacher", "memory")


class Stored(NamedTuple):
    """A model read back."""

    config: Any  # of the run
    leaves: dict  # path tuple from `params`, `teacher` or `memory` down -> array
    tokenizer: str | None  # its folder
    path: str  # where it was read


def state_shapes(config):
    """Path tuple -> `jax.ShapeDtypeStruct` of every leaf of the state, without optimizer, of a
    whole config."""
    return _state_shapes(to_json(config))


@functools.lru_cache(maxsize=16)
def _state_shapes(config):
    """`config`: as JSON; tracing a model takes longer than reading a small one."""
    task, rng = make_task(from_json(config)), jax.random.key(0)
    params = jax.eval_shape(task.init, rng)
    return flatten_dict({"params": params, "teacher": jax.eval_shape(task.teacher_of, params),
                         "memory": jax.eval_shape(task.init_memory, rng)})


def read_stored(path):
    """Reads a work directory (its latest checkpoint) or an export; a UserError if it is neither."""
    if is_export(path):
        return read_export(path, Report(str(path)))
    if not epath.Path(path).is_dir():
        raise UserError(f"{path} is no work directory; give one, or make one of other weights "
                        "with albef import FILE --out DIR.")
    return read_workdir(path)


def read_workdir(path, step=None):
    """Parameters, teacher and memory of a checkpoint; raises as `read_parts`."""
    workdir = epath.Path(path)
    config = read_config(workdir)
    leaves = flatten_dict(read_parts(workdir, config, PARTS, step))
    return Stored(config, leaves, _tokenizer_of(workdir), str(path))


def read_unused(path):
    """The tensors of an imported work directory that no forward pass reads: name -> array."""
    file = epath.Path(path) / UNUSED_FILE
    return read_tensors(os.fspath(file)) if file.exists() else {}


def read_parts(workdir, config, parts, step=None):
    """Parts of a checkpoint by name, as numpy; a UserError if there is none or it is damaged."""
    with open_to_read(workdir, config.checkpoint) as checkpointer:
        shapes = checkpointer.shapes(step)
        return checkpointer.restore({part: shapes[part] for part in parts}, step, partial=True)[0]


def is_export(path):
    """Whether a path is what `albef export --format safetensors` wrote, or the file in it."""
    file = _weights_file(path)
    if not file.endswith(".safetensors") or not epath.Path(file).exists():
        return False
    return read_metadata(file).get("format") == FORMAT


def read_export(path, report):
    """Reads an export strictly; `report` is told what went where, and raises as its `check`."""
    file = _weights_file(path)
    config, tensors = config_of(file), read_tensors(file)
    layers = max((value for name, value in config.model.items()
                  if name.endswith(("layers", "depth"))), default=0)
    if layers > len(tensors):  # tracing such a model would take minutes
        raise UserError(f"{file} says that its model has {layers} layers, but holds "
                        f"{len(tensors)} tensors; export it again.")
    shapes = state_shapes(config)
    for name in tensors:
        report.use([name], name)
    for leaf, spec in shapes.items():
        if as_path(leaf) in tensors:
            report.inspect(as_path(leaf), tensors[as_path(leaf)], spec.shape, spec.dtype)
    report.check(tensors, shapes)
    leaves = {leaf: tensors[as_path(leaf)] for leaf in shapes}
    return Stored(config, leaves, _tokenizer_of(epath.Path(file).parent), str(path))


def config_of(file):
    """The config in the metadata of an export; a UserError where it cannot be used."""
    try:
        config = from_json(read_metadata(file)["config"])
        check_keys(config)
        task_class(config.task).check(config)
    except (UserError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file} holds no config of a model ({first_line(error)}); export it "
                        "again.") from None
    return config


def _weights_file(path):
    path = epath.Path(path)
    return os.fspath(path / WEIGHTS_FILE if path.is_dir() else path)


def _tokenizer_of(folder):
    return str(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
