"""A model as functions that plain JAX runs: `albef export --format jax`.

Each function of the task becomes a file of StableHLO for CPUs, NVIDIA GPUs and TPUs, with any number
of rows; the weights stay beside it as safetensors. Whoever calls it needs jax and safetensors.
"""

import pathlib

from flax.traverse_util import unflatten_dict
import jax
from jax import export
import numpy as np

from albef_jax.config import to_json
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.tasks import make_task

# Function of a task -> the arrays that it takes. What is not a field comes from another function:
# the first thing that it gives.
FUNCTIONS = {
    "encode_image": ("image",), "encode_text": ("text_ids", "text_mask"),
    "match": ("image_embeds", "text_embeds", "text_mask"),
    "classify": ("image", "text_ids", "text_mask"),
    "encode": ("image", "text_ids", "text_mask"),
    "rank": ("states", "text_mask", "answer_ids", "answer_mask")}
GIVEN_BY = {"image_embeds": "encode_image", "text_embeds": "encode_text", "states": "encode"}
PLATFORMS = ("cpu", "cuda", "tpu")
ENDING = ".jaxexport"
RANKED = 8  # answers that `rank` gives, of as many or more
WEIGHTS_FILE = "weights.safetensors"


def lower(stored, report) -> dict[str, export.Exported]:
    """The functions of a task by name; UserError if it has none of `FUNCTIONS`.

    Args:
      stored: a `Stored`. report: is told which parameters are used.
    """
    config = stored.config.copy_and_resolve_references().unlock()
    if "dtype" in config.model:
        config.model.dtype = "float32"
    task = make_task(config.lock())
    arrays, functions = row_shapes(task, config), with_numbers(task.predict_fns())
    params = {"/".join(path[1:]): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
              for path, leaf in stored.leaves.items() if path[0] == "params"}
    for name in params:
        report.use([f"params/{name}"], name)
    found = {}
    for name, wanted in FUNCTIONS.items():
        if name in functions and all(array in arrays for array in wanted):
            found[name] = lowered = export.export(
                jax.jit(flat(functions[name])), platforms=PLATFORMS)(
                    params, *any_rows({array: arrays[array] for array in wanted}))
            first = jax.tree.leaves(lowered.out_avals)[0]
            arrays |= {array: jax.ShapeDtypeStruct((1, *first.shape[1:]), first.dtype)
                       for array, giver in GIVEN_BY.items() if giver == name}
    if not found:
        raise UserError(f"The task {config.task!r} has no functions that --format jax writes "
                        f"({', '.join(FUNCTIONS)}, of images and texts); use --format safetensors.")
    return found


def any_rows(arrays):
    """The shapes of arrays with `b` rows, of answers `c`."""
    counts = {name: "c" if name.startswith("answer") else "b" for name in arrays}
    scope = export.SymbolicScope([f"c >= {RANKED}"] if "c" in counts.values() else [])
    return [jax.ShapeDtypeStruct(
        (*export.symbolic_shape(counts[name], scope=scope), *array.shape[1:]), array.dtype)
            for name, array in arrays.items()]


def row_shapes(task, config):
    """The arrays of a batch of one row, texts as long as in evaluation, by name."""
    rng, arrays = np.random.default_rng(0), {}
    data = config.data.copy_and_resolve_references().unlock()
    if data.get("eval_text_length"):
        data.text_length = data.eval_text_length
    config = config.copy_and_resolve_references().unlock()
    config.data = data
    for field in task.fields(config.lock()).values():
        arrays |= field.noise(rng, 1)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype)
              for name, array in arrays.items()}
    # Answers stand in rows of several for each question.
    return shapes | {name: jax.ShapeDtypeStruct((1, array.shape[-1]), array.dtype)
                     for name, array in shapes.items() if name in ("answer_ids", "answer_mask")}


def with_numbers(functions):
    """`rank` with answers as arrays, so that it gives the best `RANKED`."""
    def rank(params, states, text_mask, answer_ids, answer_mask):
        return functions["rank"](params, states, text_mask, (answer_ids, answer_mask), RANKED,
                                 True)

    return functions | ({"rank": rank} if "rank" in functions else {})


def flat(function):
    """A function of parameters by their path, `a/b/kernel`, instead of a tree."""
    return lambda params, *arrays: function(
        unflatten_dict({tuple(name.split("/")): leaf for name, leaf in params.items()}), *arrays)


def write_lowered(folder, stored, report):
    """Writes a new folder: a file of each function, the weights, config, tokenizer, a README."""
    from safetensors.numpy import save_file

    functions, folder = lower(stored, report), pathlib.Path(folder)
    folder.mkdir(parents=True)
    for name, lowered in functions.items():
        (folder / f"{name}{ENDING}").write_bytes(lowered.serialize())
    save_file({"/".join(path[1:]): np.asarray(leaf, order="C") for path, leaf in
               stored.leaves.items() if path[0] == "params"}, folder / WEIGHTS_FILE)
    (folder / "config.json").write_text(to_json(stored.config))
    (folder / "README.md").write_text(readme(stored.config, functions))
    if stored.tokenizer:
        load_tokenizer(stored.tokenizer).save(str(folder / "tokenizer"))


def readme(config, functions):
    """Markdown: what each function takes and gives, and the lines that call one."""
    def shapes(avals):
        return ", ".join(f"{a.dtype} [{', '.join(map(str, a.shape))}]" for a in avals)

    rows = "\n".join(
        f"| `{name}` | {shapes(lowered.in_avals[-len(FUNCTIONS[name]):])} | "
        f"{shapes(lowered.out_avals)} |" for name, lowered in functions.items())
    name = next(iter(functions))
    return f"""# The functions of a model of the task `{config.task.rpartition(":")[2]}`

| function | takes the weights and | gives |
|---|---|---|
{rows}

`b` is any number of rows{f', c any number of answers from {RANKED} on' if 'rank' in functions else ''}.
Images are uint8 RGB pixels of the model's size; texts are ids of `tokenizer/`, and a mask with 1 for
each, padded to the length above. In any process with jax and safetensors:

```python
import numpy as np
from jax import export
from safetensors.numpy import load_file

weights = load_file("{WEIGHTS_FILE}")
{name} = export.deserialize(open("{name}{ENDING}", "rb").read())
results = {name}.call(weights, {', '.join(FUNCTIONS[name])})
```
"""
