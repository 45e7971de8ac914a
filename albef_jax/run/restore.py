"""What a run has saved, read back from its work directory onto the devices that are here."""

import optax

from albef_jax.core.state import abstract_state
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh
from albef_jax.run.checkpoint import open_to_read
from albef_jax.tasks import task_class


def mesh_of(config):
    """The mesh of a run, if it fits the devices that are here, else all of them side by side."""
    try:
        return make_mesh(config.mesh)
    except UserError:
        return make_mesh()


def read_tokenizer(workdir, config):
    """The tokenizer of a run, UserError if it is not there; None if its task reads no texts."""
    fields = task_class(config.task).fields(config)
    if not any(field.needs_tokenizer for field in fields.values()):
        return None
    if not (workdir / "tokenizer").is_dir():
        raise UserError(f"{workdir} has no folder tokenizer; copy it from where the model was "
                        "trained, or give albef import --tokenizer.")
    return load_tokenizer(str(workdir / "tokenizer"))


def restore_params(workdir, parts, step=None):
    """The online parameters of a checkpoint, and its step; see `restore_parts`."""
    restored, step = restore_parts(workdir, parts, ("params",), step)
    return restored["params"], step


def restore_parts(workdir, parts, names, step=None):
    """Parts of a checkpoint by name, placed as in training, and its step.

    Args:
      workdir: of a run. parts: `core.build.Parts` of its config.
      names: of 'step', 'params', 'teacher' and 'memory'. Imported weights have no more.
      step: None for the latest.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or of another config.
    """
    state = abstract_state(parts.task, optax.identity(), parts.mesh, parts.config.rules)
    with open_to_read(workdir, parts.config.checkpoint) as checkpointer:
        return checkpointer.restore({name: getattr(state, name) for name in names}, step,
                                    partial=True)
