"""Encoders that start from other people's weights: `config.init`, and where those come from."""

import json
import os

from flax.traverse_util import flatten_dict, unflatten_dict

from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError, first_line, listed
from albef_jax.files import local_copy
from albef_jax.tasks import task_class
from albef_jax.weights.foreign import bert, vit
from albef_jax.weights.foreign.torch_file import CHOOSE, read_tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"  # behind the name of such a file: which parts it lies in
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")


def wanted(config):
    """Whether a config names such weights."""
    init = config.get("init", {})
    return bool(init.get("bert") or init.get("vit"))


def apply(config, params, tokenizer):
    """Puts the weights that `config.init` names into fresh parameters.

    Args:
      config: a whole config; `config.init` names BERT and ViT weights, '' for none.
      params: fresh online parameters, nested dicts of arrays.
      tokenizer: of the run; BERT's word embeddings must be in the order of its vocabulary.

    Returns:
      The parameters, those that were read as float32 numpy arrays, and a report of what went
      where, as text.

    Raises:
      UserError: weights that are missing, left over, broken, or of a model of other sizes.
    """
    task, params, reports = task_class(config.task), dict(params), []
    if config.init.bert:
        tensors, settings, folder = open_weights(config.init.bert)
        check_vocabulary(config, folder, tokenizer)
        seen, fresh = task.bert_start(config, params)
        filled, report = fill(bert, seen, tensors, settings, fresh)
        params = task.with_bert(params, filled)
        reports.append(str(report))
    if config.init.get("vit"):
        tensors, settings, _ = open_weights(config.init.vit)
        params[vit.ENCODER], report = fill(vit, config, tensors, settings, params[vit.ENCODER])
        reports.append(str(report))
    return params, "\n".join(reports)


def fill(layout, config, tensors, settings, fresh):
    """An encoder's fresh tree with what a file fills, and the report; see `foreign.fill`."""
    leaves = flatten_dict({layout.ENCODER: fresh})
    filled, report = layout.fill(config, tensors, settings, leaves)
    return unflatten_dict(leaves | filled)[layout.ENCODER], report


def open_weights(name):
    """The tensors behind a name in `config.init`.

    Args:
      name: a file of weights, or FILE::KEY of one that holds several state dicts; a folder in the
        layout of Hugging Face (config.json and model.safetensors or pytorch_model.bin, which may
        be in parts); or a name on the Hugging Face hub.

    Returns:
      name -> array; what config.json says, {} where there is none; the folder.

    Raises:
      UserError: there is no such thing, or it is incomplete or damaged.
    """
    file, mark, key = name.partition(CHOOSE)
    file = local_copy(file)
    if os.path.isfile(file):
        return read_tensors(f"{file}{mark}{key}"), {}, os.path.dirname(file)
    folder = file if os.path.isdir(file) else download(file)
    if file := first_of(WEIGHT_FILES, folder):
        return read_tensors(file), read_settings(folder), folder
    if index := first_of([file + INDEX for file in WEIGHT_FILES], folder):
        return read_parts(index), read_settings(folder), folder
    raise UserError(f"{name} holds neither {' nor '.join(WEIGHT_FILES)}, nor one in parts; give "
                    "the folder of a whole model, or the file itself.")


def read_parts(index):
    """The tensors of a model in several files, whose index says what is where; raises UserError."""
    try:
        with open(index, encoding="utf-8-sig") as file:
            places = json.load(file)["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights ({first_line(error)}); download it "
                        "again.") from None
    tensors = {}
    for file in files:
        if os.path.basename(file) != file:
            raise UserError(f"{index} names {file!r}, which is outside its folder; download it "
                            "again.")
        tensors |= read_tensors(os.path.join(os.path.dirname(index), file))
    missing = [name for name in places if name not in tensors] if (
        not tensors.keys() >= places.keys()) else []
    # Prefixes that all names have are left out of the tensors, not of the index.
    if missing and len(missing) != len(places):
        raise UserError(f"{index} names {listed(missing, 3)}, which its files do not hold; "
                        "download all of them again.")
    return tensors


def first_of(files, folder):
    """The path of the first of some files that is in a folder, or None."""
    paths = (os.path.join(folder, file) for file in files)
    return next(filter(os.path.isfile, paths), None)


def read_settings(folder):
    """What a folder's config.json says; {} without one."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again.") from None


def download(name):
    """The local folder of a model on the Hugging Face hub, downloaded where it is not cached."""
    from huggingface_hub import snapshot_download

    small = ["config.json", "tokenizer_config.json", *VOCABULARY_FILES]
    try:
        for file in WEIGHT_FILES:
            parts = [file + INDEX, file.replace(".", "-*.")]
            folder = snapshot_download(name, allow_patterns=[*small, file, *parts])
            if first_of([*WEIGHT_FILES, parts[0]], folder):
                break
    except Exception as error:  # the library raises anything
        raise UserError(f"The weights {name!r} are neither a file, nor a folder, nor a name that "
                        f"the Hugging Face hub gives us ({first_line(error)}); check "
                        "config.init.") from None
    return folder


def check_vocabulary(config, folder, tokenizer):
    """The run's words must be numbered as the file's are."""
    if not first_of(VOCABULARY_FILES, folder):
        return  # their number is all that can be compared, with the embeddings
    theirs = load_tokenizer(folder)
    if theirs.rules != tokenizer.rules:
        raise UserError(f"The run's tokenizer splits texts by other rules than {config.init.bert} "
                        f"({tokenizer.rules} here, {theirs.rules} there), so it gives other words; "
                        "set data.tokenizer to the same folder or name, with a new --workdir.")
    if theirs.vocabulary != tokenizer.vocabulary:
        raise UserError(f"The run's tokenizer has another vocabulary than {config.init.bert}, so "
                        "its word embeddings would belong to other words; set data.tokenizer to "
                        "the same folder or name, with a new --workdir.")
