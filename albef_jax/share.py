"""Trained models to and from the Hugging Face hub: `albef push` and `albef pull`."""

import os
import pathlib
import shutil
import tempfile

from etils import epath

from albef_jax.errors import UserError
from albef_jax.files import absolute, completed
from albef_jax.report import card
from albef_jax.run.workdir import read_config
from albef_jax.weights.export import export
from albef_jax.weights.hub import PREFIX, Address, downloaded, readable

LICENCE = "# license: choose one, see https://hf.co/docs/hub/repositories-licenses"


def push(workdir, repo, weights="online", step=None, private=False):
    """Uploads the weights of a run with config, tokenizer and model card, as one commit.

    Args:
      workdir: of a run. repo: 'ORG/NAME', or 'ORG/NAME@BRANCH'; it is made if it is not there.
      weights, step: see `weights.export.export`. private: of a repository that is made.

    Returns:
      Words with the address that stays: `hf://ORG/NAME@COMMIT`.

    Raises:
      UserError: there is no token, or the hub refuses; the work directory is incomplete.
    """
    from huggingface_hub import HfApi, get_token

    address, workdir = Address.of(repo), epath.Path(workdir)
    if get_token() is None:
        raise UserError("The hub wants to know who you are: put a token that may write into "
                        "HF_TOKEN, or run `hf auth login`.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch, "model")
        export(workdir, folder, "safetensors", weights, step)
        describe(folder, workdir, read_config(workdir), address.repo)
        api = HfApi()
        with readable(address):
            api.create_repo(address.repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=address.repo, folder_path=folder, revision=address.revision,
                commit_message=f"albef push: {workdir.resolve().name}")
    return f"pushed; load it with albef_jax.load({f'{PREFIX}{address.repo}@{done.oid}'!r})"


def describe(folder, workdir, config, repo):
    """Completes the model card of an export: the run, its curves, where to load it from."""
    path = folder / "README.md"
    front, rest = path.read_text().split("\n---\n", 1)
    text = rest.replace('"FOLDER"', f'"{PREFIX}{repo}"').replace(
        "albef import FOLDER", f"albef pull {repo} --out FOLDER && albef import FOLDER")
    path.write_text(f"{front}\n{LICENCE}\n---\n{text}\n{card.section(workdir, config)}")
    if curves := card.curves_png(workdir, config):
        (folder / card.CURVES).write_bytes(curves)


def pull(repo, out):
    """Downloads what `push` wrote into a new folder, complete or not at all; words where it is.

    Raises:
      UserError: the hub has no such model or revision, or cannot be reached.
    """
    address, out = Address.of(repo), absolute(out)
    if epath.Path(out).exists():
        raise UserError(f"{out} exists; give a new path, so that nothing is overwritten.")
    epath.Path(out).parent.mkdir(parents=True, exist_ok=True)
    with completed(out) as unfinished:
        downloaded(address, unfinished)
        shutil.rmtree(os.path.join(unfinished, ".cache"), ignore_errors=True)  # the client's notes
        if not os.path.exists(os.path.join(unfinished, "model.safetensors")):
            raise UserError(f"{address.repo} holds no model.safetensors; it is not a model that "
                            "`albef push` wrote.")
    return f"{address.repo} is in {out}; load it with albef_jax.load({out!r})"
