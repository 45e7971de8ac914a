"""Starting a run from other weights: `albef train --init`."""

from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp

from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.weights import pretrained
from albef_jax.weights.importer import REPORT_FILE as IMPORT_REPORT
from albef_jax.weights.report import Report
from albef_jax.weights.stored import PARTS, read_stored
from albef_jax.weights.transfer import transfer

REPORT_FILE = "init.txt"  # in the work directory


def read_init(init, workdir):
    """The weights that a run starts from; None without `init`, and for a run that goes on.

    Args:
      init: a work directory or export, or None. workdir: of the run.

    Raises:
      UserError: `init` cannot be read, or `workdir` holds imported weights and no run.
    """
    workdir = epath.Path(workdir)
    if (workdir / IMPORT_REPORT).exists():
        raise UserError(f"{workdir} holds imported weights, not a run; start a run from them with "
                        f"--init {workdir} and another --workdir.")
    has_checkpoints = (workdir / "checkpoints").is_dir() and any(
        path.name.isdigit() for path in (workdir / "checkpoints").iterdir())
    if not init or has_checkpoints:
        return None
    return read_stored(init)


def check_tokenizers(tokenizer, stored):
    """A UserError if the words of a run are not those of the weights it starts from."""
    words = stored.config.model.get("vocab_size", tokenizer.vocab_size)
    if tokenizer.vocab_size != words or (
            stored.tokenizer
            and tokenizer.vocabulary != load_tokenizer(stored.tokenizer).vocabulary):
        raise UserError(f"The tokenizer of this run has {tokenizer.vocab_size} words and is not "
                        f"that of {stored.path}, which has {words}; set data.tokenizer to the "
                        "latter, or leave it empty if it is saved there.")


def take_weights(stored, state, config, workdir, is_writer):
    """A fresh `TrainState` with the weights of another run; step and optimizer stay fresh.

    What went where is printed and kept in the work directory, on the first process (`is_writer`).

    Raises:
      UserError: `config.init` names weights too, or see `transfer`.
    """
    if pretrained.wanted(config):
        raise UserError(f"Weights come from --init {stored.path} and from config.init at once; "
                        "leave one of them out.")
    fresh = flatten_dict({part: getattr(state, part) for part in PARTS})
    report = Report(f"{stored.path} ({stored.config.task}) -> {config.task}")
    leaves = transfer(stored, config, fresh, report)
    if is_writer:
        (epath.Path(workdir) / REPORT_FILE).write_text(f"{report}\n")
        print(report, flush=True)
    # Copies: steps donate their state, and files stay mapped.
    placed = {path: jax.device_put(jnp.array(leaves[path]), leaf.sharding)
              if path in leaves else leaf for path, leaf in fresh.items()}
    return state.replace(**{part: {} for part in PARTS} | unflatten_dict(placed))
