"""Weights from files into a work directory: `albef import`."""

from contextlib import closing
import math
import os

from etils import epath
from flax.traverse_util import unflatten_dict
import numpy as np

from albef_jax.config import check_keys, with_task
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.files import aside, uploaded
from albef_jax.models.resample import resize_positions
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.workdir import record_of, write_config
from albef_jax.tasks.base import take_words
from albef_jax.weights.foreign.kinds import MEMORY, detect, kind_of
from albef_jax.weights.foreign.salesforce import read_leaves
from albef_jax.weights.foreign.torch_file import let_go, read_tensors
from albef_jax.weights.report import Report
from albef_jax.weights.stored import PARTS, UNUSED_FILE, is_export, read_export, state_shapes
from albef_jax.weights.transfer import has_patches

REPORT_FILE = "import.txt"  # in the work directory


def import_file(path, out, kind=None, heads=None, image_size=None, tokenizer=None, config=None):
    """Makes a work directory of a checkpoint; complete or not at all.

    It holds `config.json`, `checkpoints/0` with parameters, teacher and queues, the report
    (`import.txt`) and, if one is known, the tokenizer: all that `albef evaluate`, `albef export`,
    `albef train --init` and `albef_jax.load` need. Tensors that no forward pass reads are kept for
    `albef export` in `unused.safetensors`.

    Args:
      path: `.pth` of one of the kinds in `weights.foreign.kinds`, or what `albef export --format
        safetensors` wrote.
      out: the work directory, which must not exist.
      kind: its kind; None: by the names of its tensors.
      heads: attention heads of all encoders, which no tensor shows; None: the config's.
      image_size: pixels; position embeddings are interpolated to it. None: the config's if one is
        given, else that of the checkpoint.
      tokenizer: a folder or Hugging Face name, saved with the model.
      config: a config whose sizes must be those of the checkpoint; None: the default one with
        the sizes of the checkpoint.

    Returns:
      The `Report`.

    Raises:
      UserError: the file cannot be read, holds other tensors than its kind, or does not fit.
    """
    if config:
        check_keys(config)
    out = epath.Path(out)
    if out.exists():
        raise UserError(f"{out} exists; give a work directory that does not, so that nothing is "
                        "overwritten.")
    report, unused = Report(f"{os.path.basename(os.path.normpath(path))} -> {out}"), {}
    if is_export(path):
        if kind or heads or config:
            raise UserError(f"{path} was written by albef export and holds its own config; leave "
                            "out --as, --heads and --config.")
        stored = read_export(path, report)
        config, leaves = stored.config.unlock(), stored.leaves
        tokenizer, side = tokenizer or stored.tokenizer, image_size
    else:
        tensors = read_tensors(path)
        kind = kind_of(kind or detect(tensors, path))
        side = image_size or (config.model.get("image_size") if config else None)
        config = fitted_config(config, kind, *kind.sizes(tensors, path), heads, path)
        leaves = read_official(tensors, kind, config, report)
        unused = {name: np.array(tensors[name], np.float32)
                  for name in kind.unused(config) if name in tensors}
        let_go(tensors)  # before a checkpoint is made of the leaves, which takes another copy
        tokenizer = tokenizer or config.data.tokenizer
    if side:
        resize_images(leaves, config, side, report, path)
    pieces = fitted_tokenizer(tokenizer, config, path) if tokenizer else None
    try:
        with aside(out) as unfinished:
            write_workdir(unfinished, config.lock(), leaves, pieces, report, unused)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another --out, or "
                        "mend the cause.") from None
    return report


def fitted_config(config, kind, found, queue_size, heads, path):
    """The config of the model in a checkpoint, at its resolution; unlocked.

    Raises:
      UserError: a config that was given has other sizes, or the heads do not divide a width.
    """
    given = config.copy_and_resolve_references() if config else kind.fresh_config()
    block_of = {name: "model" if name in given.model else "data" for name in found}
    differing = [f"{block}.{name} is {given[block][name]}, but {found[name]} there"
                 for name, block in block_of.items()
                 if config and given[block].get(name, found[name]) != found[name]
                 and name not in ("image_size", "vocab_size")]
    if differing:
        raise UserError(f"{path} does not fit the config: {'; '.join(differing)}; change the "
                        "config, or leave it out.")
    config = with_task(given, kind.name).unlock()
    for name, value in found.items():
        config[block_of[name]][name] = value
    if "max_positions" in found:  # of a small model the texts are short too
        room = found["max_positions"] - config.model.get("final_sep", False)
        for name in ("text_length", "eval_text_length"):
            config.data[name] = min(config.data[name], room)
    if kind.memory:
        config.objective.queue_size = queue_size
    if queue_size % config.batch_size:  # nothing is trained here, but tasks check it
        config.batch_size = config.group_size = math.gcd(queue_size, config.batch_size)
    if "positives" in config.objective:  # 'image' wants image ids, which the file does not have
        config.objective.positives = "pair"
    for name, width in kind.attention:
        config.model[name] = number = heads or config.model[name]
        if config.model[width] % number:
            raise UserError(f"{path} has a {width} of {config.model[width]}, which {number} heads "
                            "do not divide; give their number with --heads.")
    kind.check(config)
    return config


def read_official(tensors, kind, config, report):
    """Official tensors -> the leaves of a whole state without optimizer: as `read_leaves`.

    Second names, constants and empty queues are left out where they are what they must be.
    """
    for name, original in kind.tied(config).items():
        if name in tensors and original in tensors:
            report.ignore(name, "a second name of a tied tensor, equal to the first")
            if not np.array_equal(tensors[name], tensors[original]):
                report.wrong(name, f"differs from {original}, to which it must be tied")
    for name, value in kind.buffers(config).items():
        if name in tensors:
            report.ignore(name, "a constant: positions 0, 1, 2, ...")
            if not np.array_equal(tensors[name], value):
                report.wrong(name, "is not 0, 1, 2, ...")
    shapes = state_shapes(config)
    for name, (shape, why) in kind.unused(config).items():
        if name in tensors:
            report.ignore(name, why)
            report.inspect(name, tensors[name], shape)
    for name in kind.memory if not any(path[0] == "memory" for path in shapes) else ():
        (source,) = MEMORY[name].sources
        if source not in tensors:
            report.wrong(source, "is missing")
        elif tensors[source].size and name != "pointer":
            report.wrong(source, f"has shape {list(tensors[source].shape)}, but others are empty")
        else:
            report.ignore(source, "an empty queue")
    return read_leaves(kind.table(config), tensors, shapes, config.model.get("patch_size"),
                       report)


def resize_images(leaves, config, image_size, report, path):
    """Interpolates position embeddings in place, and sets the resolution of the config."""
    if not has_patches(config):
        raise UserError(f"{path} is of the task {config.task!r}, whose model has no patches of "
                        "images; leave out --image-size.")
    before, patch = config.model.image_size, config.model.patch_size
    if image_size % patch:
        raise UserError(f"The image size {image_size} is not a multiple of the patch size "
                        f"{patch}; choose {image_size // patch * patch or patch}.")
    for leaf in leaves:
        if leaf[-1] == "pos_embed" and image_size != before:
            leaves[leaf] = resize_positions(leaves[leaf], image_size // patch)
            report.interpolate(leaf, f"{before} px", f"{image_size} px")
    config.model.image_size = image_size


def fitted_tokenizer(name, config, path):
    """The tokenizer of that folder or name, its ids written into the config."""
    tokenizer = load_tokenizer(str(name))
    if "vocab_size" not in config.model:  # a task that keeps the words elsewhere, or reads none
        return tokenizer
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(f"The tokenizer {name} has {tokenizer.vocab_size} words, but {path} has "
                        f"{config.model.vocab_size} word embeddings; give the tokenizer that the "
                        "weights were trained with (bert-base-uncased for the official ones).")
    take_words(config.model, tokenizer)
    return tokenizer


def write_workdir(out, config, leaves, tokenizer, report, unused):
    """Writes a whole work directory to the path `out`."""
    out.mkdir(parents=True)
    if unused:
        from safetensors.numpy import save_file

        with uploaded(str(out / UNUSED_FILE)) as file:
            save_file(unused, file)
    if tokenizer is not None:
        tokenizer.save(str(out / "tokenizer"))
    (out / REPORT_FILE).write_text(f"{report}\n")
    write_config(config, out, is_writer=True)
    state = dict.fromkeys(PARTS, {}) | unflatten_dict(leaves)
    with closing(Checkpointer(out, config.checkpoint, record_of(config, out))) as checkpointer:
        checkpointer.save(0, {"step": np.zeros((), np.int32), **state}, wait=True)
