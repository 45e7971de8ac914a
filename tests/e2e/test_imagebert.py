"""ImageBERT from pre-training over fine-tuning to Python; and what it learns by heart (slow)."""

from pathlib import Path

import numpy as np
import pytest

import albef_jax
from albef_jax.config import load_config
from albef_jax.data.sources import make_source
from albef_jax.evaluate import evaluate
from albef_jax.report.history import curve, latest_values, read_history
from albef_jax.train import train
from albef_jax.weights.stored import read_stored

CONFIG = Path(__file__).parents[1] / "tiny_imagebert.py"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    assert train(load_config(CONFIG), workdir)
    return workdir


@pytest.mark.slow
def test_fine_tuning_starts_from_a_pre_training(pretrained, tmp_path):
    config = load_config(f"{CONFIG}:retrieval", ["--config.steps=4"])
    assert train(config, tmp_path / "run", init=pretrained)
    text = (tmp_path / "run" / "init.txt").read_text()
    assert "the task predicts no words" in text and " 0 fresh" in text
    before, after = (read_stored(run).leaves["params", "itm_head", "kernel"]
                     for run in (pretrained, tmp_path / "run"))
    moved = np.abs(after - before)
    assert 0 < moved.max() < 1e-2  # four small steps away
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_in_python_and_evaluated(pretrained):
    """Raw values go in by field name; the numbers are those of the evaluator."""
    model, config = albef_jax.load(pretrained), load_config(CONFIG)
    shelves = make_source(config.evals.dev.source)
    scores = model.predict("match", text=[shelves.text(row)[0] for row in range(8)],
                           regions=[shelves.regions(row) for row in range(8)])
    assert scores.shape == (8,) and scores.dtype == np.float32 and np.ptp(scores) > 0
    rows = read_history(pretrained / "metrics.jsonl")
    _, values = latest_values(rows, pretrained, "dev")
    assert values.keys() >= {"i2t_r1", "fold_r_mean"}
    assert evaluate(pretrained)["dev"] == pytest.approx(values)


@pytest.mark.slow
def test_64_shelves_by_heart(tmp_path):
    """All four losses fall, and nearly all captions of a shelf are found."""
    assert train(load_config(f"{CONFIG}:learn"), tmp_path / "run")
    rows = read_history(tmp_path / "run" / "metrics.jsonl")
    for name, share in (("mlm", 0.2), ("moc", 0.5), ("mrfr", 0.6), ("itm", 0.7)):
        _, values = curve(rows, name)
        assert np.mean(values[-10:]) < share * values[0], name
    assert np.mean(curve(rows, "itm_accuracy")[1][-10:]) > 0.75
    _, values = latest_values(rows, tmp_path / "run", "dev")
    assert values["i2t_r1"] > 50 and values["r_mean"] > 75
