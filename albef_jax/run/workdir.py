"""The work directory of a run: may it be written, and which config does it belong to."""

import re
import sys

from albef_jax.config import STAGE_BLOCKS, differences, from_json, to_json
from albef_jax.errors import UserError
from albef_jax.files import read_bytes, readable_errors, write
from albef_jax.tasks import task_class

# What a resumed run must agree in, beside the data: the shapes of its state and its draws.
FIXED_KEYS = ("task", "seed", "batch_size", "group_size", "model.")


def make_writable(workdir, is_writer):
    """Makes the work directory; UserError, before hours are spent, if it cannot be written."""
    if not is_writer:
        return
    try:
        with readable_errors(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            probe = workdir / ".writable"
            probe.write_text("")
            probe.unlink()
    except OSError as error:
        raise UserError(f"The work directory {workdir} cannot be written ({error.strerror}); give "
                        "another --workdir, or mend the cause.") from error


def read_config(workdir):
    """The locked config of a run; UserError if there is none, or it is damaged."""
    path = workdir / "config.json"
    try:
        return from_json(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the work directory of a training run, the "
                        "one given to `albef train --workdir`.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend the cause, or give "
                        "another work directory.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it from a copy of the "
                        "run.") from None


def stored_config(workdir):
    """The config of the run in a work directory, None if there is no run."""
    return read_config(workdir) if (workdir / "config.json").exists() else None


def compare_config(config, workdir, is_writer):
    """Says what differs from the config of the work directory; UserError if that must not."""
    stored = stored_config(workdir)
    if stored is None:
        return
    changed = differences(stored, from_json(to_json(config)))
    if config.stages and stored.stages:  # they say it all; what the last one has is there twice
        changed = {name: values for name, values in changed.items()
                   if name.split(".")[0] not in (*STAGE_BLOCKS, "steps")}
    if any(re.fullmatch(r"(stages\.\d+\.)?data\.fingerprint", name) for name in changed):
        raise UserError(f"{workdir} holds a run on other data: the manifests or their order have "
                        "changed since it started; give those of the run, or another --workdir.")
    ended = [f"stages.{number}.steps" for number in range(len(stored.stages) - 1)]
    if "stages" in changed or len(config.stages) < len(stored.stages) or changed.keys() & {*ended}:
        was = ", ".join(f"{stage['name']} ({stage['steps']} steps)" for stage in stored.stages)
        raise UserError(f"{workdir} holds a run in other stages ({was or 'one piece'}); only the "
                        "last one may get longer, and new ones come after it; use the same, or "
                        "another --workdir.")
    free = task_class(config.task).free_keys
    for name, (before, now) in changed.items():
        if name.startswith(FIXED_KEYS) and name not in free:
            raise UserError(
                f"{workdir} holds a run with config.{name}={before!r}, not {now!r}; use the "
                "same value to resume it, or another --workdir for a new run.")
        if is_writer:
            print(f"resuming with config.{name}={now!r}, which was {before!r}", file=sys.stderr)


def write_config(config, workdir, is_writer):
    """Writes config.json, complete or not at all; only once the config has proved to fit."""
    if is_writer:
        write(workdir / "config.json", to_json(config))
