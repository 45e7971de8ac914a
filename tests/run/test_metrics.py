"""What a run writes and shows, read back from the real files and a real terminal."""

import importlib.util
import json
import os
from pathlib import Path
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import time

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from albef_jax.errors import UserError
from albef_jax.run import metrics
from albef_jax.run.goodput import Clock
from albef_jax.tasks.base import Shown

ROOT = Path(__file__).parents[2]
CONFIG = ml_collections.ConfigDict({"wandb": ""})
SHOWN = [Shown("loss", "loss"), Shown("itc", "itc"), Shown("itm", "itm"), Shown("mlm", "mlm"),
         Shown("accuracy", "accuracy", share=True), Shown("alpha", "alpha")]
FORMS = metrics.line_forms(SHOWN)
LINE = {"loss": 7.25, "itc": 3.5, "itm": 0.625, "mlm": 3.125, "lr": 1e-4, "step_time": 0.5,
        "samples_per_sec_per_device": 412.3, "tflops_per_device": 119.0, "mfu": 0.12,
        "data_wait": 0.013, "mi_bound": 1.0}


def write(workdir, entries, **arguments):
    writer = metrics.MetricsWriter(workdir, 100, CONFIG, SHOWN, **arguments)
    for step, values in entries:
        writer.log(step, values)
    writer.close()


def read(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def events(workdir):
    """Reads TensorBoard's files: length (8 bytes), crc (4), event, crc (4)."""
    files = workdir.glob("events.out.tfevents.*")
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12:12 + length])
            data = data[16 + length:]


def test_jsonl_has_a_line_per_log(tmp_path):
    write(tmp_path, [(10, {"loss": np.float32(0.5)}), (10, {"dev/r_mean": 3}),
                     (20, {"loss": 0.25})])
    assert read(tmp_path) == [{"step": 10, "loss": 0.5}, {"step": 10, "dev/r_mean": 3.0},
                              {"step": 20, "loss": 0.25}]


def test_jsonl_is_there_before_the_run_ends(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 100, CONFIG, SHOWN)
    writer.log(10, {"loss": 0.5})
    assert read(tmp_path) == [{"step": 10, "loss": 0.5}]
    writer.close()


def test_what_is_not_finite_is_null(tmp_path):
    write(tmp_path, [(1, {"loss": float("nan"), "itc": float("inf"), "itm": 1.0})])
    assert read(tmp_path) == [{"step": 1, "loss": None, "itc": None, "itm": 1.0}]


def test_a_resumed_curve_has_no_doubles(tmp_path):
    write(tmp_path, [(step, {"loss": 1.0}) for step in (0, 10, 20, 30)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # a kill
    write(tmp_path, [(30, {"loss": 2.0})], start_step=25)
    assert [(line["step"], line["loss"]) for line in read(tmp_path)] == [
        (0, 1.0), (10, 1.0), (20, 1.0), (30, 2.0)]
    assert not list(tmp_path.glob("*.tmp"))
    starts = [event.step for event in events(tmp_path)
              if event.session_log.status == event.session_log.START]
    assert starts[-1] == 26  # TensorBoard forgets this step and later ones of the first part


def test_a_start_that_logs_nothing_leaves_no_event_file(tmp_path):
    write(tmp_path, [])
    assert not list(events(tmp_path))
    write(tmp_path, [(10, {"loss": 1.0})])
    write(tmp_path, [], start_step=10)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
    write(tmp_path, [(0, {"loss": 1.0}), (10, {"loss": 1.0})])
    write(tmp_path, [(0, {"loss": 2.0})])
    assert read(tmp_path) == [{"step": 0, "loss": 2.0}]


def test_tensorboard_holds_the_scalars(tmp_path):
    write(tmp_path, [(10, {"loss": 0.5}), (20, {"dev/r_mean": 3.0})])
    scalars = [(event.step, value.tag, value.simple_value)
               for event in events(tmp_path) for value in event.summary.value]
    assert scalars == [(10, "loss", 0.5), (20, "dev/r_mean", 3.0)]


def test_a_full_disk_is_told_and_does_not_hang(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        writer = metrics.MetricsWriter(tmp_path, 100, CONFIG, SHOWN)
        with pytest.raises(UserError, match="Could not write metrics to .* .No space left on "):
            for step in range(5000):
                writer.log(step, {"loss": 1.0})
        writer.close()
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_only_the_writer_writes(tmp_path, capfd):
    writer = metrics.MetricsWriter(tmp_path / "run", 100, CONFIG, SHOWN, is_writer=False)
    writer.log(10, {"loss": 0.5})
    writer.advance(11)
    writer.close()
    assert not (tmp_path / "run").exists() and capfd.readouterr() == ("", "")


def test_importing_needs_no_tensorflow():
    code = ("import sys, albef_jax.run.metrics, albef_jax.run.checkpoint; "
            "assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


# What people see


def test_the_line_says_what_matters():
    assert metrics.training_line(40, 100, LINE, FORMS) == (
        "step 40/100  loss 7.2500  itc 3.5000  itm 0.6250  mlm 3.1250  lr 1.00e-04  "
        "412.3 samples/s/device  119 TFLOP/s/device  MFU 12.0%  data wait 1.3%  30s left")
    classes = {"loss": 1.0, "accuracy": 0.625, "alpha": 0.4}
    assert metrics.training_line(40, 100, classes, FORMS) == (
        "step 40/100  loss 1.0000  accuracy 62.5%  alpha 0.4000")
    without = {name: LINE[name] for name in ("loss", "itm", "step_time")}
    assert metrics.training_line(40, 100, without, FORMS) == (
        "step 40/100  loss 7.2500  itm 0.6250  30s left")


@pytest.mark.parametrize("seconds,text", [
    (0.4, "0s"), (59.6, "1m 00s"), (725, "12m 05s"), (11_220, "3h 07m"), (187_200, "2d 04h")])
def test_duration(seconds, text):
    assert metrics.duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(tmp_path, capfd):
    write(tmp_path, [(40, LINE), (40, {"dev/r_mean": 12.345, "dev/i2t_r1": 4.0})])
    lines = capfd.readouterr().err.splitlines()
    assert lines == [metrics.training_line(40, 100, LINE, FORMS),
                     "dev at step 40", "             R@1", "  r_mean   12.35", "  i2t       4.00"]


def test_a_bar_with_time_left_on_a_terminal(tmp_path):
    code = textwrap.dedent("""
        import sys, time
        from test_metrics import CONFIG, LINE, SHOWN, metrics
        writer = metrics.MetricsWriter(sys.argv[1], 100, CONFIG, SHOWN)
        for step in range(1, 41):
            time.sleep(0.01)
            writer.advance(step)
        writer.log(40, LINE)
        writer.log(40, {"dev/r_mean": 12.0})
        writer.close()
        """)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests/run"}
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=theirs,
                               env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # how Linux says that the other side has closed
        pass
    assert process.wait(timeout=60) == 0
    os.close(ours)
    shown = shown.decode()
    assert " 40/100 [" in shown and "<" in shown and "loss 7.2500" in shown
    assert "dev at step 40" in shown and "r_mean   12.00" in shown and "step 40/100" not in shown


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_asked_for_and_missing(tmp_path):
    with pytest.raises(UserError, match="config.wandb is 'mine' but .*pip install wandb"):
        metrics.MetricsWriter(tmp_path, 100, ml_collections.ConfigDict({"wandb": "mine"}), SHOWN)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = ml_collections.ConfigDict({"wandb": "mine", "seed": 3})
    writer = metrics.MetricsWriter(tmp_path, 100, config, SHOWN)
    writer.log(10, {"loss": 0.5})
    writer.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


# Pace


def test_rates():
    throughput = metrics.Throughput(batch_size=512, device_count=8, flops_per_sample=288.8e9,
                                    peak_flops=989e12)
    rates = throughput.rates(steps=50, seconds=4.0, data_wait=1.0)
    assert rates == pytest.approx({
        "step_time": 0.08, "samples_per_sec_per_device": 800.0, "tflops_per_device": 231.04,
        "mfu": 231.04 / 989, "data_wait": 0.25})
    unknown = metrics.Throughput(512, 8, 288.8e9, None).rates(50, 4.0, 1.0)
    assert "mfu" not in unknown and unknown.keys() < rates.keys()


def test_the_timer_separates_data_and_pauses():
    clock = Clock()
    timer = metrics.StepTimer(10, metrics.Throughput(4, 1, 1.0, None), clock)
    with clock.doing("steps"):
        with clock.doing("data"):
            time.sleep(0.1)
        time.sleep(0.1)
        with clock.doing("evaluation"):
            time.sleep(0.3)
        first = timer.lap(12)
        assert 0.2 <= 2 * first["step_time"] < 0.3
        assert 0.3 < first["data_wait"] < 0.6 and "slowest_process" not in first
        assert timer.lap(12) == {}
        time.sleep(0.05)
        assert timer.lap(13)["data_wait"] == 0


def test_pending_is_one_log_late():
    pending = metrics.Pending()
    assert pending.flush() is None
    assert pending.push(10, {"loss": jnp.float32(0.5), "lr": 1e-4}) is None
    assert pending.push(20, {"loss": jnp.float32(0.25)}) == (10, {"loss": 0.5, "lr": 1e-4})
    step, values = pending.flush()
    assert (step, values) == (20, {"loss": 0.25}) and type(values["loss"]) is float
    assert pending.flush() is None


def test_pending_fetches_nothing_when_it_takes():
    class Loss:
        """A scalar that knows whether it was fetched; guards against transfers ignore the CPU."""
        fetched = False

        def __array__(self, *args, **kwargs):
            self.fetched = True
            return np.array(0.5)

    pending, loss = metrics.Pending(), Loss()
    pending.push(10, {"loss": loss})
    assert not loss.fetched
    assert pending.flush() == (10, {"loss": 0.5}) and loss.fetched
