"""The work directory of a run: may it be written, and which config does it belong to."""

import json
import re
import sys

from albef_jax.config import STAGE_BLOCKS, differences, from_json, to_json
from albef_jax.errors import UserError
from albef_jax.files import read_bytes, readable_errors, write
from albef_jax.run.checkpoint import RECORD
from albef_jax.tasks import task_class

OWED = "owed.json"  # evaluations that a signal kept from being made: {"step": 40, "evals": ["dev"]}
TOKENIZER_FILES = ("tokenizer/tokenizer.json", "tokenizer/vocab.txt")

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


def record_of(config, workdir):
    """What every checkpoint of a run records of it: the config, and the texts of its tokenizer."""
    files = {name: (workdir / name).read_bytes().decode() for name in TOKENIZER_FILES
             if (workdir / name).exists()}
    return {"config": config.to_dict(), "files": files}


def newest_record(workdir):
    """What the newest checkpoint of a work directory records, see `record_of`; {} without one.

    Read as a file: of several processes orbax would wait for all, and one alone asks.
    """
    folder = workdir / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    for path in sorted(steps, key=lambda path: -int(path.name)):
        try:
            return dict(json.loads(read_bytes(path / RECORD)))
        except (OSError, ValueError, TypeError):  # half-written on an object store, or damaged
            continue
    return {}


def mend(workdir, is_writer):
    """Restores config and tokenizer of a run from its newest checkpoint where they are damaged."""
    record = newest_record(workdir) if is_writer else {}
    for name, text in record.get("files", {}).items():
        path = workdir / name
        if not path.exists() or path.read_bytes() != text.encode():
            path.parent.mkdir(exist_ok=True)
            _restore(path, text)
    if record.get("config"):
        try:
            _parse_config(workdir / "config.json")
        except (OSError, ValueError):
            _restore(workdir / "config.json", json.dumps(record["config"]))


def _restore(path, text):
    print(f"{path} is missing or damaged; it is restored from the newest checkpoint",
          file=sys.stderr)
    write(path, text)


def read_config(workdir):
    """The locked config of a run, of a damaged one that of its newest checkpoint.

    Raises:
      UserError: there is no run, or both are damaged.
    """
    path = workdir / "config.json"
    try:
        return _parse_config(path)
    except (OSError, ValueError) as error:
        recorded = newest_record(workdir).get("config")
        if recorded:
            print(f"{path} is missing or damaged; the config of the newest checkpoint is used",
                  file=sys.stderr)
            return from_json(json.dumps(recorded))
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path} does not exist; give the work directory of a training run, "
                            "the one given to `albef train --workdir`.") from None
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read ({error.strerror}); mend the cause, or give "
                            "another work directory.") from None
        raise UserError(f"{path} is not the config of a run ({error}); restore it from a copy of "
                        "the run, or give another work directory.") from None


def _parse_config(path):
    """The config in a file; raises OSError or ValueError."""
    return from_json(read_bytes(path).decode("utf-8"))


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


def owe(workdir, step, names, is_writer):
    """Notes which evaluations were due at the step that is saved; none: what is noted is done."""
    path = workdir / OWED
    if is_writer and names:
        write(path, json.dumps({"step": step, "evals": list(names)}))
    elif is_writer:
        path.unlink(missing_ok=True)


def owed(workdir, step):
    """The names of the evaluations that are still to be made of the checkpoint of a step."""
    try:
        noted = json.loads(read_bytes(workdir / OWED))
        return list(noted["evals"]) if noted["step"] == step else []
    except (OSError, ValueError, LookupError, TypeError):  # lost with a damaged note: one row
        return []
