"""Losses that stay where knowing nothing has them: who is told, when, and who never."""

import numpy as np
import pytest

from albef_jax.objectives.matching import knowing_nothing
from albef_jax.run.metrics import MetricsWriter
from albef_jax.run.plateau import PATIENCE, Plateaus
from albef_jax.tasks.base import Shown

ITM_BLIND, _ = knowing_nothing(1.0)
SHOWN = [Shown("loss", "loss"),
         Shown("itm", "itm", blind=ITM_BLIND, advice="do this",
               blind_accuracy=("itm_accuracy", 2 / 3))]


def logged(losses, accuracies=2 / 3, every=20, total=10_000):
    """The sentences, with their steps, of a run that logged these; and those at its end."""
    watch, said = Plateaus(SHOWN, total), []
    losses = np.asarray(losses, float)
    for number, (loss, accuracy) in enumerate(
            zip(losses, np.broadcast_to(accuracies, losses.shape))):
        step = (number + 1) * every
        said += [(step, line) for line in watch.add(step, {"itm": loss, "itm_accuracy": accuracy})]
    return said, watch.sentences


def noise(size, spread, seed=0):
    return np.random.default_rng(seed).normal(0, spread, size)


def test_a_run_that_stays_is_told_once():
    said, at_end = logged(ITM_BLIND + noise(200, 0.003))
    ((step, line),) = said
    assert step == PATIENCE + 20 and at_end == [line]
    assert line == ("the itm loss has stayed at 0.637 for 1,000 steps, that of a model that knows "
                    "nothing: do this")


def test_half_of_a_short_run_is_enough():
    ((step, line),) = logged(ITM_BLIND + noise(100, 0.003), total=800)[0]
    assert step == 420 and "for 400 steps" in line


@pytest.mark.parametrize("losses, accuracies", [
    (np.linspace(ITM_BLIND, 0.3, 200), np.linspace(2 / 3, 0.85, 200)),  # learns from the start
    (np.r_[np.full(40, ITM_BLIND), np.linspace(ITM_BLIND, 0.2, 160)],  # after 800 steps
     np.r_[np.full(40, 2 / 3), np.linspace(2 / 3, 0.8, 160)]),
    (np.full(200, ITM_BLIND), 0.72),  # unsure and right
    (np.full(200, 1.02 * ITM_BLIND), 0.667),  # above it: worse than knowing nothing
    (np.full(200, np.nan), 0.667)])
def test_a_run_that_learns_is_never_told(losses, accuracies):
    assert logged(losses + noise(200, 0.005), accuracies) == ([], [])


def test_who_leaves_the_plateau_is_not_blamed_at_the_end():
    said, at_end = logged(np.r_[np.full(60, ITM_BLIND), np.full(60, 0.4)])
    assert len(said) == 1 and at_end == []


def test_metrics_without_advice_and_other_rows_are_nothing():
    watch = Plateaus([Shown("itm", "itm", blind=ITM_BLIND)], 10)
    assert not any(watch.add(step, {"itm": ITM_BLIND}) for step in range(100))
    watch = Plateaus(SHOWN, 10)
    assert watch.add(1, {"retrieval/r_mean": 5.0}) == [] and watch.add(2, {"itm": None}) == []
    assert watch.add(3, {"itm": ITM_BLIND, "itm_accuracy": None}) == []
    assert watch.add(20, {"itm": ITM_BLIND, "itm_accuracy": None}) == []


def test_the_log_has_the_sentence(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, 100, {"wandb": ""}, SHOWN)
    for step in range(1, 101):
        writer.log(step, {"loss": 3.0, "itm": ITM_BLIND, "itm_accuracy": 2 / 3})
    writer.close()
    assert capsys.readouterr().err.count("do this") == 1
