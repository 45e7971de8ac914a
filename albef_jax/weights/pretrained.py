"""Encoders that start from other people's weights: `config.init`, and where those come from."""

import json
import os

from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError, first_line
from albef_jax.files import local_copy
from albef_jax.tasks import task_class
from albef_jax.weights.foreign import bert
from albef_jax.weights.foreign import vit
from albef_jax.weights.foreign.torch_file import read_tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
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
    params, reports = dict(params), []
    if config.init.bert:
        tensors, settings, folder = open_weights(config.init.bert)
        check_vocabulary(config, folder, tokenizer)
        part = task_class(config.task).bert
        plan = bert.plan(config, tensors, settings, part, words="head" in params[part])
        params[part] = plan.fill(part, params[part], config.model.get("patch_size"))
        reports.append(plan.report)
    if config.init.get("vit"):
        tensors, settings, _ = open_weights(config.init.vit)
        plan = vit.plan(config, tensors, settings)
        params[vit.ENCODER] = plan.fill(vit.ENCODER, params[vit.ENCODER], config.model.patch_size)
        reports.append(plan.report)
    return params, "\n".join(map(str, reports))


def open_weights(name):
    """The tensors behind a name in `config.init`.

    Args:
      name: a file of weights; a folder in the layout of Hugging Face (config.json and
        model.safetensors or pytorch_model.bin); or a name on the Hugging Face hub.

    Returns:
      name -> array; what config.json says, {} where there is none; the folder.

    Raises:
      UserError: there is no such thing, or it is incomplete.
    """
    name = local_copy(name)
    if os.path.isfile(name):
        return read_tensors(name), {}, os.path.dirname(name)
    folder = name if os.path.isdir(name) else download(name)
    files = [file for file in WEIGHT_FILES if os.path.isfile(os.path.join(folder, file))]
    if not files:
        raise UserError(f"{name} holds neither {' nor '.join(WEIGHT_FILES)}; give the folder of a "
                        "whole model in one file, or the file itself.")
    return read_tensors(os.path.join(folder, files[0])), read_settings(folder), folder


def read_settings(folder):
    """What a folder's config.json says; {} without one.

    Raises:
      UserError: it is damaged.
    """
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again.") from None


def download(name):
    """The local folder of a model on the Hugging Face hub, downloaded where it is not cached.

    Raises:
      UserError: there is no such folder and no such model.
    """
    from huggingface_hub import snapshot_download

    small = ["config.json", "tokenizer_config.json", *VOCABULARY_FILES]
    try:
        folder = snapshot_download(name, allow_patterns=[*small, WEIGHT_FILES[0]])
        if not os.path.isfile(os.path.join(folder, WEIGHT_FILES[0])):
            folder = snapshot_download(name, allow_patterns=[*small, WEIGHT_FILES[1]])
    except Exception as error:  # the library raises anything
        raise UserError(f"The weights {name!r} are neither a file, nor a folder, nor a name that "
                        f"the Hugging Face hub gives us ({first_line(error)}); check "
                        "config.init.") from None
    return folder


def check_vocabulary(config, folder, tokenizer):
    """The run's words must be numbered as the file's are.

    Raises:
      UserError: they are not.
    """
    if not any(os.path.isfile(os.path.join(folder, file)) for file in VOCABULARY_FILES):
        return  # their number is all that can be compared, with the embeddings
    if load_tokenizer(folder).vocabulary != tokenizer.vocabulary:
        raise UserError(f"The run's tokenizer has another vocabulary than {config.init.bert}, so "
                        "its word embeddings would belong to other words; set data.tokenizer to "
                        "the same folder or name, with a new --workdir.")
