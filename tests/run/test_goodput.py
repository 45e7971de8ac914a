"""Where the wall time went: the parts of a process, and of the starts of a run that was killed."""

import json
import os
import time

import pytest

from albef_jax.report.history import read_history
from albef_jax.run.goodput import Clock, Start, of_ended, starts_of
from albef_jax.run.metrics import MetricsWriter


def test_parts_within_parts_count_once():
    clock = Clock()
    before = clock.seconds()["start"]
    assert 0 < before < time.time() - os.stat(f"/proc/{os.getpid()}").st_ctime + 60
    with clock.doing("steps"):
        time.sleep(0.05)
        with clock.doing("data"):
            time.sleep(0.1)
        with pytest.raises(ValueError), clock.doing("saves"):
            raise ValueError
    seconds = clock.seconds()
    assert seconds["data"] == pytest.approx(0.1, abs=0.04)
    assert seconds["steps"] == pytest.approx(0.05, abs=0.04)
    assert sum(seconds.values()) == pytest.approx(time.time() - clock.began, abs=0.02)
    assert "lost" not in clock.row() and clock.row()["began"] == pytest.approx(clock.began, abs=1)


def row(step, began, **seconds):
    return {"step": step, "wall": {"began": began, **seconds}}


def test_what_a_start_did_after_the_checkpoint_is_lost():
    rows = [row(0, 10.0, start=3.0), row(10, 10.0, start=3.0, compile=5.0, steps=2.0, data=0.5),
            row(30, 10.0, start=3.0, compile=5.0, steps=7.0, data=1.0, saves=0.5)]
    assert of_ended(rows, 10) == [row(
        10, 10.0, start=3.0, compile=5.0, steps=2.0, data=0.5, lost=pytest.approx(6.0))]
    assert of_ended(rows, 30) == []  # nothing is forgotten
    assert of_ended(rows, 5) == [row(5, 10.0, start=3.0, compile=5.0, lost=pytest.approx(8.5))]


def test_a_run_that_goes_back_twice_keeps_all_seconds(tmp_path):
    """The second start loses some of its steps, then a third some more of both."""
    path, config = tmp_path / "metrics.jsonl", {"wandb": ""}
    first = [row(step, 10.0, start=3.0, steps=step / 10) for step in (0, 10, 20, 30)]
    path.write_text("".join(json.dumps(one) + "\n" for one in first) + '{"step": 31, "wa')
    MetricsWriter(tmp_path, 100, config, [], start_step=20).close()
    second = [row(step, 50.0, restore=1.0, steps=(step - 20) / 10) for step in (20, 30, 40)]
    with path.open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in second)
    MetricsWriter(tmp_path, 100, config, [], start_step=10).close()
    starts = starts_of(read_history(path))
    assert starts == [
        Start(10.0, 0, 10, {"start": 3.0, "steps": 1.0, "lost": pytest.approx(2.0)}),
        Start(50.0, 10, 10, {"restore": 1.0, "lost": pytest.approx(2.0)})]
    assert sum(sum(start.seconds.values()) for start in starts) == pytest.approx(9.0)


def test_lines_say_where_the_time_went(tmp_path):
    clock = Clock()
    writer = MetricsWriter(tmp_path, 10, {"wandb": ""}, [], clock=clock)
    writer.log_time(0)
    writer.log(5, {"loss": 1.0})
    writer.close()
    with clock.doing("evaluation"):
        time.sleep(0.05)
    writer.log_time(5)
    (start,) = starts_of(read_history(tmp_path / "metrics.jsonl"))
    assert (start.first, start.last) == (0, 5) and start.seconds["evaluation"] >= 0.05
    assert starts_of([(3, {"loss": 1.0})]) == []
