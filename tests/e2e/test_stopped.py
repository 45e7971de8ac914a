"""What a run that a signal stops owes, and what it gives back; in this process, with real signals."""

import json
import os
import signal

from etils import epath
import pytest

from albef_jax.config import load_config
from albef_jax.errors import UserError
from albef_jax.evaluators.base import Evaluator
from albef_jax.run import lock
from albef_jax.train import train

CONFIG = "tests/outside/config.py"


class Mean(Evaluator):
    """How many examples there are; a signal comes when it runs for the first time at a step."""

    comes = []  # one entry for each run in which a signal comes

    def run(self, forward):
        if self.comes:
            os.kill(os.getpid(), self.comes.pop())
        yield "count", float(len(self.source))

    def examples(self, forward, teacher):
        if self.comes:
            os.kill(os.getpid(), self.comes.pop())
        return {}


@pytest.fixture
def config():
    config = load_config(CONFIG, ["--config.steps=4", "--config.log_every=1",
                                  "--config.checkpoint.best_metric=dev/count"])
    config.evals.dev.update(kind=f"{__name__}:Mean", every=2)
    return config


def evaluations(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "dev/count" in row]


@pytest.mark.parametrize("signals, stops", [
    ([signal.SIGTERM], [2]),  # in the middle
    ([0, signal.SIGHUP], [4]),  # in the last evaluation: nothing is left to train
    ([signal.SIGUSR1, signal.SIGTERM], [2, 2])])  # twice in the same evaluation
def test_an_evaluation_that_a_signal_ended_is_made_later(config, tmp_path, capsys, signals, stops):
    workdir, saved = epath.Path(tmp_path), []
    Mean.comes[:] = [number for number in reversed(signals)]
    for _ in stops:
        train(config, tmp_path)
        saved.append(int(max(path.name for path in (workdir / "checkpoints").iterdir())))
        assert "it is made when the run goes on" in capsys.readouterr().err
    assert saved[0] == stops[0]
    assert train(config, tmp_path)
    assert sorted(set(evaluations(workdir))) == evaluations(workdir)[:2] == [2, 4]
    assert not (workdir / "owed.json").exists() and not (workdir / lock.FILE).exists()
    assert "nothing is left to train" not in capsys.readouterr().err
    assert train(config, tmp_path) and "nothing is left to train" in capsys.readouterr().err
    assert evaluations(workdir) == [2, 4]


def test_a_signal_while_the_report_is_made_loses_nothing(config, tmp_path, capsys):
    """The run is complete; a signal ends neither the process nor anything but the page."""
    Mean.comes[:] = [signal.SIGTERM, 0, 0]  # none in the two evaluations
    assert train(config, tmp_path)
    assert "no report was written (a signal came); `albef report" in capsys.readouterr().err
    assert not Mean.comes and not (tmp_path / "report.html").exists()
    assert evaluations(epath.Path(tmp_path)) == [2, 4]
    assert train(config, tmp_path) and "nothing is left to train" in capsys.readouterr().err


def test_another_training_in_the_same_place_is_refused(config, tmp_path):
    with lock.held(epath.Path(tmp_path), True):
        with pytest.raises(UserError, match="is in use by another training"):
            train(config, tmp_path)
