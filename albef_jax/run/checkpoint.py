"""Checkpoints of a run: asynchronous, atomic, and bit for bit what was saved.

One checkpoint is an orbax composite of the train state and a JSON record: step, metrics, checksums of
all arrays, config, and what else of the run would be missed.
It is written beside its final name and renamed when complete, so that a kill or a full disk in the
middle of a save leaves the earlier checkpoints as they were.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import math
import os
import re
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from albef_jax.errors import UserError, first_line, listed
from albef_jax.files import absolute
from albef_jax.run.checksums import checksums

MAX_NAMED = 3  # leaves named in the sentence about a checkpoint of another config
# Orbax renames `60.orbax-checkpoint-tmp` to `60` when complete; in object stores it marks `60`.
HALF_WRITTEN = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")
RECORD = "record/metadata"  # in the folder of a checkpoint, as orbax has it


@dataclasses.dataclass
class Retention:
    """Which checkpoints stay; orbax deletes the others once a newer one is complete.

    A step is kept if it is one of the latest `keep_latest`, or a multiple of `keep_every` (0: no
    such rule), or the best one measured. A checkpoint without the metric never competes for best.
    """

    keep_latest: int
    keep_every: int  # steps
    best_mode: str  # 'max' or 'min'
    measured: dict[int, float] = dataclasses.field(default_factory=dict)  # step -> metric

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of `steps` that stay."""
        kept = set(sorted(steps)[-self.keep_latest:])
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        if candidates := [step for step in steps if step in self.measured]:
            sign = 1 if self.best_mode == "max" else -1
            # Among equals the later one: it has seen more data.
            kept.add(max(candidates, key=lambda step: (sign * self.measured[step], step)))
        return kept

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """As orbax's protocol `PreservationPolicy` asks it."""
        del context
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


class Checkpointer:
    """Saves and restores train states in `WORKDIR/checkpoints`; every process calls every method.

    Opening it changes nothing that is there, so a finished or a running run can be read.
    """

    def __init__(self, workdir, options, record: Mapping[str, Any] | None = None):
        """Opens the checkpoints of a work directory, which may be empty.

        Args:
          workdir: path of the run; local or any that `epath` knows, such as gs://.
          options: `config.checkpoint`.
          record: plain values that every checkpoint holds, such as the whole config.
        """
        logging.get_absl_logger().addFilter(_is_not_from_orbax)  # twice changes nothing
        self.directory = epath.Path(workdir) / "checkpoints"
        self._best_metric, self._record = options.best_metric, dict(record or {})
        self._with_checksums = options.checksums
        self._saving = None  # step of the save under way
        self._retention = Retention(options.keep_latest, options.keep_every, options.best_mode)
        self._manager = ocp.CheckpointManager(
            absolute(self.directory),
            item_handlers={"state": ocp.StandardCheckpointHandler(),
                           "record": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._retention, lightweight_initialize=True))
        self._half_written = self._find_half_written()
        for step in self._manager.all_steps():
            self._measure(step, self.record(step).get("metrics", {}))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state, metrics: Mapping[str, float] | None = None, *,
             wait: bool = False) -> bool:
        """Saves a state; returns as soon as it may be donated, and writes in the background.

        Args:
          step: number of finished steps.
          state: pytree of jax arrays (typed keys too) and numpy arrays or scalars.
          metrics: what was measured at this step; `best_metric` is looked up here.
          wait: return only when the checkpoint is complete on disk.

        Returns:
          Whether a save was started: a step that is saved already is not saved again.

        Raises:
          UserError: this save, or an earlier one still under way, could not be written.
        """
        metrics = {name: float(value) for name, value in (metrics or {}).items()
                   if math.isfinite(value)}
        self.wait()
        if step in self._manager.all_steps():
            return False
        self._remove_half_written()
        self._measure(step, metrics)
        self._saving = step
        record = {**self._record, "step": step, "metrics": metrics}
        if self._with_checksums:
            record["checksums"] = checksums(state)
        try:
            self._manager.save(step, force=True, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)))
        except Exception as error:
            raise self._save_failure(error) from error
        if wait:
            self.wait()
        return True

    def restore(self, state_like, step: int | None = None, *,
                partial: bool = False) -> tuple[Any, int]:
        """Restores a state and its step, bit for bit, onto the devices that `state_like` names.

        Args:
          state_like: pytree of the same structure: jax arrays or `jax.ShapeDtypeStruct`s, whose
            shardings are where the values go (of any topology), and numpy arrays or scalars.
          step: which checkpoint; None for the latest.
          partial: `state_like` is a dict with some parts of the state, such as `params`; nothing
            else is compared or read. What has no sharding comes back as numpy.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or it has another config.
        """
        step = self._existing(step)
        abstract = jax.tree.map(_abstract, state_like)
        saved = self._metadata(step)
        if partial:
            saved = {part: tree for part, tree in saved.items() if part in state_like}
        self._check_same_config(step, saved, abstract)
        try:
            restored = self._read_parts(step, abstract) if partial else self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        except jax.errors.JaxRuntimeError:  # of the device (out of memory), not of the files
            raise
        except Exception as error:
            raise self.damage(step, first_line(error)) from error
        self._check_sums(step, restored)
        return jax.tree.map(_as_scalar, state_like, restored), step

    def record(self, step: int | None = None) -> dict[str, Any]:
        """What is recorded with a checkpoint, by default the latest; {} if that is damaged."""
        try:
            return self._manager.restore(self._existing(step), args=ocp.args.Composite(
                record=ocp.args.JsonRestore()))["record"]
        except UserError:
            raise
        except Exception:  # orbax raises anything
            return {}

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes what was measured of a checkpoint after it was saved."""
        self._measure(step, metrics)

    def shapes(self, step: int | None = None) -> dict[str, Any]:
        """What a checkpoint holds: nested dicts of `jax.ShapeDtypeStruct`s.

        UserError if there is no such checkpoint, or it is damaged.
        """
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                            self._metadata(self._existing(step)))

    def wait(self) -> None:
        """Waits until the save under way is complete on disk; UserError if it cannot be written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_failure(error) from error

    def close(self) -> None:
        """As `wait`, and frees the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _existing(self, step):
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"There is no checkpoint in {self.directory}; train first, or give "
                            "the work directory of a run that has saved one.")
        if step is not None and step not in steps:
            raise UserError(f"There is no checkpoint of step {step} in {self.directory}; it has "
                            f"{', '.join(map(str, steps))}.")
        return max(steps) if step is None else step

    def _metadata(self, step):
        try:
            return self._manager.item_metadata(step)["state"].tree
        except Exception as error:
            raise self.damage(step, first_line(error)) from error

    def _read_parts(self, step, abstract):
        # The manager's own handler reads whole states only.
        path = self._manager.directory / str(step) / "state"  # absolute, unlike self.directory
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(path, ocp.args.PyTreeRestore(
                abstract, ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True))

    def _check_sums(self, step, restored):
        """UserError where an array of a checkpoint is not what was saved."""
        saved = self.record(step).get("checksums") if self._with_checksums else None
        differing = [name for name, value in checksums(restored).items()
                     if saved.get(name, value) != value] if saved else ()
        if differing:
            raise self.damage(step, f"{listed(differing, MAX_NAMED)} are not what was saved")

    def _measure(self, step, metrics):
        if self._best_metric in metrics:
            self._retention.measured[step] = metrics[self._best_metric]

    def _find_half_written(self):
        """Names what an interrupted save left behind; nobody reads it."""
        complete = {str(step) for step in self._manager.all_steps()}
        found = self.directory.iterdir() if self.directory.is_dir() else ()  # object stores
        left = [path for path in found
                if HALF_WRITTEN.fullmatch(path.name) and path.name not in complete]
        for path in left if jax.process_index() == 0 else ():
            logging.warning("Ignoring the half-written checkpoint %s: its save was interrupted.",
                            path)
        return left

    def _remove_half_written(self):
        # Not on opening: a reader must not remove what a running training is about to finish.
        if jax.process_index() == 0:
            for path in self._half_written:
                path.rmtree(missing_ok=True)
        self._half_written = []

    def _save_failure(self, error):
        """A sentence if the storage failed, else the error itself (a bug)."""
        reason = _storage_error(error)
        if reason is None:
            return error
        self._manager.reload()
        latest = self.latest_step()
        intact = ("there is no earlier one" if latest is None
                  else f"the previous checkpoint, of step {latest}, is intact")
        return UserError(
            f"Could not write the checkpoint of step {self._saving} to {self.directory} "
            f"({reason}); {intact}: make room or mend the cause, and run the same command again "
            "to go on.")

    def damage(self, step: int, why: str) -> UserError:
        """The sentence about a checkpoint that cannot be used, and the one before it."""
        earlier = [s for s in self._manager.all_steps() if s < step]
        go_on = f"go on from step {max(earlier)}" if earlier else "start from the beginning"
        return UserError(
            f"The checkpoint of step {step} in {self.directory} is damaged "
            f"({why}); to {go_on}, move {self.directory / str(step)} away and run "
            "the same command again.")

    def _check_same_config(self, step, saved, wanted):
        saved, wanted = _describe(saved), _describe(jax.tree.map(_stored, wanted))
        differing = [
            f"{name} ({saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here)"
            for name in dict.fromkeys([*wanted, *saved]) if saved.get(name) != wanted.get(name)]
        if not differing:
            return
        raise UserError(
            f"The checkpoint of step {step} in {self.directory} belongs to another config: "
            f"{listed(differing, MAX_NAMED)} differ; use that run's config, or another work "
            "directory.")


@contextlib.contextmanager
def open_to_read(workdir, options):
    """Yields the `Checkpointer` of a work directory, and closes it; UserError if it has none."""
    if not (epath.Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoints; train until one is saved, or give another "
                        "work directory.")
    with contextlib.closing(Checkpointer(workdir, options)) as checkpointer:
        yield checkpointer


def _is_not_from_orbax(record):
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _abstract(leaf):
    """Describes a leaf to orbax, the device layout included; numpy stays numpy."""
    if isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.asarray(leaf)


def _stored(leaf):
    """Describes a leaf as it is on disk, where a typed key is its integers."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.eval_shape(jax.random.key_data, leaf)
    return leaf


def _as_scalar(like, restored):
    return restored[()] if isinstance(like, np.generic) else restored


def _describe(tree) -> dict[str, str]:
    """Leaf path -> 'dtype[shape]'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"):
            f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _storage_error(error) -> str | None:
    """The operating system's words for a failed write, None for any other error."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # as tensorstore reports it
        return os.strerror(int(code.group(1)))
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    return None
