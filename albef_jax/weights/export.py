"""Weights out of a work directory: `albef export`."""

import os

from etils import epath
import numpy as np

from albef_jax.config import to_json
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.files import absolute, completed
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.salesforce import to_tensors
from albef_jax.weights.foreign.torch_writer import write_torch_file
from albef_jax.weights.lowered import write_lowered
from albef_jax.weights.report import Report, as_path
from albef_jax.weights.stored import (
    FORMAT, WEIGHTS_FILE, read_unused, read_workdir, state_shapes)

FORMATS = ("salesforce", "scale", "imagebert", "safetensors", "jax")
OF_ANY_TASK = ("safetensors", "jax")
WEIGHTS = ("online", "momentum")


def export(workdir, out, form, weights="online", step=None):
    """Writes the weights of a work directory for use elsewhere; complete or not at all.

    Args:
      workdir: of a run or an import.
      out: for 'salesforce' (ALBEF), 'scale' and 'imagebert' a new `.pth` file with exactly the
        tensors of their code; for 'safetensors' a new folder with `model.safetensors` (our own
        tree), `config.json`, `tokenizer/` and a model card; for 'jax' one with functions that
        plain JAX runs, see `weights.lowered`.
      form: one of FORMATS.
      weights: 'online', or 'momentum' to put the momentum weights in the place of the online
        ones, where there are any.
      step: which checkpoint; None for the latest.

    Returns:
      The `Report`.

    Raises:
      UserError: the work directory is incomplete, or holds what the layout has no place for.
    """
    if form not in FORMATS or weights not in WEIGHTS:
        raise UserError(f"export got format {form!r} and weights {weights!r}; choose one of "
                        f"{', '.join(FORMATS)} and one of {', '.join(WEIGHTS)}.")
    out = absolute(out)
    if epath.Path(out).exists():
        raise UserError(f"{out} exists; give a new path, so that nothing is overwritten.")
    stored = read_workdir(workdir, step)
    task, leaves = stored.config.task, dict(stored.leaves)
    if form not in OF_ANY_TASK and (task not in KINDS or KINDS[task].layout != form):
        fitting = KINDS[task].layout if task in KINDS else "safetensors"
        raise UserError(f"{workdir} is of the task {task!r}, which the public code does not have; "
                        f"export it with --format {fitting}." if fitting == "safetensors" else
                        f"{workdir} is of the task {task!r}; export it with --format {fitting}.")
    report = Report(f"{workdir} ({task}, {weights}) -> {os.path.basename(out)}")
    if weights == "momentum":
        copies = {("params", *path[1:]): leaf
                  for path, leaf in leaves.items() if path[0] == "teacher"}
        if not copies:
            raise UserError(f"{workdir} has no momentum weights; use --weights online.")
        leaves |= copies
    epath.Path(out).parent.mkdir(parents=True, exist_ok=True)
    with completed(out) as unfinished:
        if form == "safetensors":
            write_folder(unfinished, leaves, stored, report)
        elif form == "jax":
            write_lowered(unfinished, stored._replace(leaves=leaves), report)
        else:
            tensors = official_tensors(leaves, KINDS[task], stored.config, report,
                                       read_unused(workdir))
            write_torch_file(unfinished, tensors, KINDS[task].wrapper)
    return report


def official_tensors(leaves, kind, config, report, unused):
    """Our leaves -> exactly the tensors of the public code's model, in its layout, strictly.

    `unused`: name -> array of what the public model has and no forward pass reads; zeros where it
    is not known, or nothing, see `Kind.optional`.
    """
    shapes, table = state_shapes(config), kind.table(config)
    for path, leaf in leaves.items():
        if path in shapes:
            report.inspect(as_path(path), leaf, shapes[path].shape, shapes[path].dtype)
    tensors = {}
    for entry in table:
        report.use([as_path(entry.path)], entry.sources[0])
        if entry.path in leaves:
            parts = to_tensors(entry, np.asarray(leaves[entry.path]),
                               config.model.get("patch_size"))
            tensors.update(zip(entry.sources, parts))
    for path in leaves:
        if path[0] == "memory" and path[1] not in kind.memory:
            report.ignore(as_path(path), "the public code keeps no image ids in pre-training")
    report.check([as_path(path) for path in leaves], [entry.sources[0] for entry in table])
    if kind.memory and not any(path[0] == "memory" for path in shapes):
        empty = np.zeros((config.model.embed_dim, 0), np.float32)
        tensors |= {"image_queue": empty, "text_queue": empty.copy(),
                    "queue_ptr": np.zeros(1, np.int64)}
        if "id_queue" in kind.memory:
            tensors["idx_queue"] = np.zeros((1, 0), np.int64)
    tensors |= kind.buffers(config)
    for name, (shape, _) in kind.unused(config).items():
        if name in unused or not kind.optional:
            tensors[name] = unused[name] if name in unused else np.zeros(shape, np.float32)
    for name, original in kind.tied(config).items():
        tensors[name] = tensors[original]  # the same object: one storage
    return tensors


def write_folder(folder, leaves, stored, report):
    """Writes our own tree as safetensors, with config, tokenizer and model card beside it."""
    from safetensors.numpy import save_file

    named = {as_path(path): np.asarray(leaf, order="C") for path, leaf in leaves.items()}
    for name in named:
        report.use([name], name)
    report.check(named, state_shapes(stored.config))
    os.makedirs(folder)
    config = to_json(stored.config)
    save_file(named, os.path.join(folder, WEIGHTS_FILE), {"format": FORMAT, "config": config})
    for name, text in (("config.json", config), ("README.md", model_card(stored, named))):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    if stored.tokenizer:
        load_tokenizer(stored.tokenizer).save(os.path.join(folder, "tokenizer"))


def model_card(stored, named):
    """Markdown with Hugging Face's front matter."""
    task, model = stored.config.task, stored.config.model
    count = sum(array.size for name, array in named.items() if name.startswith("params/"))
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in model.items()
                     if isinstance(value, (int, float, str)))
    tokenizer = "`tokenizer/`" if stored.tokenizer else "not included"
    code = f" Its code, `{task}`, must be there to load it." if ":" in task else ""
    return f"""---
library_name: albef_jax
tags: ["albef_jax", "jax"]
---

# A model of the task `{task.rpartition(":")[2]}`

{count / 1e6:.1f}M parameters, written by `albef export`.{code} `{WEIGHTS_FILE}` holds `params/`
(online weights), `teacher/` (momentum weights) and `memory/` (queues); `config.json` is the config
of the run. Tokenizer: {tokenizer}.

| `config.model` | |
|---|---|
{rows}

```sh
albef import FOLDER --out WORKDIR
albef train --config CONFIG --init FOLDER --workdir WORKDIR
```

```python
model = albef_jax.load("FOLDER")
```
"""
