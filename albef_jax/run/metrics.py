"""What a run tells about itself: a line or a bar, metrics.jsonl, TensorBoard, W&B; and its pace."""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import hashlib
import importlib
import json
import math
import sys
import time
from types import SimpleNamespace
from typing import Any, NamedTuple

from etils import epath
import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import register_writer_factory
from tqdm import tqdm

from albef_jax.errors import UserError
from albef_jax.files import GrowingFile, absolute, is_remote, write
from albef_jax.parallel import processes
from albef_jax.run.goodput import Clock, of_ended
from albef_jax.run.plateau import Plateaus
from albef_jax.run.tables import evaluation_tables

# What a line of training shows after what the task shows; everything else is in metrics.jsonl.
_LINE = {
    "lr": "lr {:.2e}",
    "samples_per_sec_per_device": "{:.4g} samples/s/device",
    "tflops_per_device": "{:.3g} TFLOP/s/device",
    "mfu": "MFU {:.1%}",
    "data_wait": "data wait {:.1%}",
}


class Throughput(NamedTuple):
    """Turns steps, wall seconds and seconds of waiting for data into the rates of a run."""

    batch_size: int  # global samples per step
    device_count: int  # of all processes
    flops_per_sample: float  # analytic, see `Task.flops`; 0 leaves rates of work out
    peak_flops: float | None  # FLOP/s of one device; None leaves MFU out

    def rates(self, steps: int, seconds: float, data_wait: float) -> dict[str, float]:
        """The rates of some training steps, 1 or more.

        Args:
          seconds: their wall time, above 0. data_wait: of it, that the loop waited for a batch.

        Returns:
          step_time (s), samples_per_sec_per_device, tflops_per_device, data_wait (share of the
          time) and, where the peak is known, mfu (share of the peak).
        """
        samples = self.batch_size / self.device_count * steps / seconds
        flops = samples * self.flops_per_sample
        rates = {"step_time": seconds / steps, "samples_per_sec_per_device": samples,
                 "data_wait": data_wait / seconds}
        if flops:
            rates["tflops_per_device"] = flops / 1e12
        return rates | ({"mfu": flops / self.peak_flops} if flops and self.peak_flops else {})


class StepTimer:
    """The pace of the training loop from lap to lap, by what its clock counts as steps and data."""

    def __init__(self, step: int, throughput: Throughput, clock: Clock):
        """Starts at `step`, the number of finished steps."""
        self._throughput, self._clock, self._blocked = throughput, clock, 0.0
        self._restart(step)

    def _restart(self, step):
        self._step, self._before, self._blocked = step, self._clock.seconds(), 0.0

    @contextlib.contextmanager
    def waiting_for_devices(self) -> Iterator[None]:
        """Counts the time inside as that of the devices, which all processes share."""
        begin = time.perf_counter()
        yield
        self._blocked += time.perf_counter() - begin

    def lap(self, step: int) -> dict[str, float]:
        """The rates since the last lap, none if no step passed; starts the next."""
        steps, now = step - self._step, self._clock.seconds()
        data, run = (now[part] - self._before[part] for part in ("data", "steps"))
        blocked = self._blocked
        self._restart(step)
        if not steps:
            return {}
        return self._throughput.rates(steps, data + run, data) | slowest(
            (data + run - blocked) / steps)


def slowest(seconds: float) -> dict[str, float]:
    """Of several processes which took longest and shortest for a step before the devices had it.

    As each told last, nobody is waited for; of a single process nothing.
    """
    told = processes.told("step", seconds)
    if len(told) < 2:
        return {}
    last, first = max(told, key=told.get), min(told, key=told.get)
    return {"slowest_process": last, "slowest_process_time": told[last],
            "fastest_process": first, "fastest_process_time": told[first]}


class Pending:
    """Holds the metrics of a log step on the device until the next one.

    Fetching them at once would make the host wait for the step and leave the device idle.
    """

    def __init__(self):
        self._held = None

    def push(self, step: int, metrics: Mapping[str, Any]) -> tuple[int, dict[str, float]] | None:
        """Takes scalars (device arrays or floats) and returns `flush()` of those before."""
        previous = self.flush()
        self._held = step, dict(metrics)
        return previous

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """Fetches and returns the (step, metrics) held, None if nothing is."""
        if self._held is None:
            return None
        (step, metrics), self._held = self._held, None
        return step, {name: float(value) for name, value in jax.device_get(metrics).items()}


class MetricsWriter:
    """Writes scalars to the work directory and tells the person at the terminal.

    With `is_writer` false (every process but the first) it does nothing.
    """

    def __init__(self, workdir, total_steps: int, config, shown, *, start_step: int = 0,
                 is_writer: bool = True, clock: Clock | None = None):
        """Starts writing; on resume forgets what was written after `start_step`.

        Args:
          workdir, total_steps: of the run. start_step: the restored step, 0 for a new run.
          config: of the run; `wandb` names a Weights & Biases project, '' or absent: none.
          shown: the task's list of `Shown`, what a line of training begins with.
          is_writer: whether this process writes. clock: what lines say of the wall time.

        Raises:
          UserError: W&B is asked for and not installed.
        """
        self._is_writer = is_writer
        if not is_writer:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._total_steps, self._forms = total_steps, line_forms(shown)
        self._plateaus = Plateaus(shown, total_steps)
        self._wandb = _start_wandb(config, workdir) if config.get("wandb") else None
        _forget_after(workdir / "metrics.jsonl", start_step)
        self._jsonl, self._clock = GrowingFile(workdir / "metrics.jsonl"), clock
        # Not before there is something to write: many starts would leave many empty files.
        self._open_tensorboard = functools.partial(_start_tensorboard, workdir, start_step)
        self._tensorboard = None
        self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True,
                         disable=not sys.stderr.isatty())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of so many finished steps; UserError if the disk is full or gone.

        `metrics` with a 'loss' are shown as a line of training, others, `evaluator/name` each, as
        tables.
        """
        if not self._is_writer:
            return
        values = {name: float(value) for name, value in metrics.items()}
        # JSON knows no NaN; null keeps the line readable for every parser.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        wall = {"wall": self._clock.row()} if self._clock else {}
        line = json.dumps({"step": step} | finite | wall, allow_nan=False) + "\n"
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        event = Event(step=step, wall_time=time.time(), summary=Summary(value=scalars))
        try:
            self._jsonl.write(line.encode())
            self._tensorboard = self._tensorboard or self._open_tensorboard()
            self._tensorboard.write_event(event)
            self._tensorboard.flush()
        except OSError as error:
            raise UserError(
                f"Could not write metrics to {self._jsonl.path.parent} "
                f"({error.strerror or error}); complete checkpoints are intact: make room or mend "
                "the cause, and run the same command again to go on.") from error
        if self._wandb:
            self._wandb.log(values, step=step)
        self._tell(step, values)
        for sentence in self._plateaus.add(step, finite):
            self._bar.write(sentence, file=sys.stderr)

    def log_time(self, step: int) -> None:
        """Writes where the wall time went so far, also when everything else is closed."""
        if self._is_writer and self._clock:
            with contextlib.suppress(OSError):  # a full disk, which `log` has told or will tell
                line = json.dumps({"step": step, "wall": self._clock.row()}) + "\n"
                self._jsonl.write(line.encode())
                self._jsonl.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar, where there is one, to `step`; cheap enough for every step."""
        if self._is_writer:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and the bar."""
        if not self._is_writer:
            return
        self._bar.close()
        for file in filter(None, (self._jsonl, self._tensorboard)):
            with contextlib.suppress(OSError):  # a full disk, which `log` has told
                file.close()
        if self._wandb:
            self._wandb.finish()

    def _tell(self, step, values):
        if "loss" not in values:
            self._bar.write(evaluation_tables(step, values), file=sys.stderr)
        elif self._bar.disable:
            self._bar.write(training_line(step, self._total_steps, values, self._forms),
                            file=sys.stderr)
        else:  # it has steps and time left itself
            self._bar.set_postfix_str("  ".join(_parts(values, self._forms)))


def line_forms(shown) -> dict[str, str]:
    """Name of a metric -> its format in a line of training, in order."""
    return {one.name: f"{one.label} {{:{'.1%' if one.share else '.4f'}}}" for one in shown} | _LINE


def training_line(step: int, total_steps: int, values: Mapping[str, float],
                  forms: Mapping[str, str]) -> str:
    """The line of a log step: where the run is, its losses, its pace, the time left.

    `forms` are those of `line_forms`.
    """
    parts = [f"step {step}/{total_steps}", *_parts(values, forms)]
    if "step_time" in values:
        parts.append(f"{duration((total_steps - step) * values['step_time'])} left")
    return "  ".join(parts)


def _parts(values, forms):
    return [form.format(values[name]) for name, form in forms.items() if name in values]


def duration(seconds: float) -> str:
    """Seconds as '45s', '12m 05s', '3h 07m' or '2d 04h'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"


def _forget_after(path: epath.Path, start_step: int):
    """Drops from metrics.jsonl the lines that a resumed run is about to write again.

    What the starts before took stays.
    """
    if not path.exists():
        return
    rows = [row for row in map(_read, path.read_text().splitlines()) if row is not None]
    # Of a run that starts anew only how long it has taken so far.
    kept = [row for row in rows if row["step"] <= start_step
            and (start_step or row.keys() == {"step", "wall"})]
    write(path, "".join(json.dumps(row) + "\n" for row in (*kept, *of_ended(rows, start_step))))


def _read(line):
    try:
        row = json.loads(line)
        return row if "step" in row else None
    except (ValueError, TypeError):  # a kill left half a line
        return None


def _start_tensorboard(workdir, start_step):
    """Opens an event file that outdates the events of later steps in the files before it.

    Not `SummaryWriter`: its thread dies of a full disk, and the run would then hang on its queue.
    """
    if is_remote(workdir):  # tensorboardX is to write by epath, as everything else
        register_writer_factory(str(workdir).partition(":")[0], SimpleNamespace(open=GrowingFile))
    events = EventsWriter(str(workdir / "events"), filename_suffix=f".{start_step}")
    events.write_event(Event(step=start_step + 1, wall_time=time.time(),
                             session_log=SessionLog(status=SessionLog.START)))
    return events


def _start_wandb(config, workdir):
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(f"config.wandb is {config.wandb!r} but the package wandb is not "
                        "installed; run `pip install wandb`, or set --config.wandb=''.") from error
    # The same folder continues the same W&B run.
    run_id = hashlib.sha256(absolute(workdir).encode()).hexdigest()[:16]
    return wandb.init(project=config.wandb, name=workdir.name, id=run_id, resume="allow",
                      dir=None if is_remote(workdir) else str(workdir), config=config.to_dict())
