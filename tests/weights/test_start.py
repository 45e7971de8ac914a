"""`albef train --init`: a fresh run with the weights of another."""

import json
from pathlib import Path

import numpy as np
import pytest

from albef_jax.cli import main
from albef_jax.models.resample import resize_positions
from albef_jax.weights.stored import read_stored

TINY = Path(__file__).parents[1] / "tiny.py"
POSITIONS = ("params", "visual_encoder", "pos_embed")


def train(workdir, *flags):
    return main(["train", "--config", str(TINY), "--workdir", str(workdir), *map(str, flags)])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("start") / "first"
    assert train(workdir, "--config.steps=2") == 0
    return workdir


@pytest.mark.slow
def test_a_run_starts_from_another(first, tmp_path, capfd):
    """At another resolution, with a rate of nearly zero: what is saved is what came in."""
    flags = ("--config.steps=1", "--config.model.image_size=48", "--config.optimizer.peak_lr=1e-12",
             "--config.optimizer.warmup_lr=1e-12", "--config.optimizer.min_lr=1e-12")
    workdir = tmp_path / "second"
    assert train(workdir, "--init", first, *flags) == 0
    printed = capfd.readouterr().out
    assert "interpolated: params/visual_encoder/pos_embed from 32 px to 48 px" in printed
    assert (workdir / "init.txt").read_text() in printed
    old, new = read_stored(first), read_stored(workdir)
    for path, leaf in new.leaves.items():
        if path[0] == "params":
            before = old.leaves[path]
            expected = resize_positions(before, 6) if path == POSITIONS else before
            np.testing.assert_allclose(leaf, expected, atol=1e-8)
    assert new.leaves["memory", "pointer"] == (old.leaves["memory", "pointer"] + 16) % 64
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1

    # Going on ignores --init, and says so.
    assert train(workdir, "--init", first, *flags, "--config.steps=2") == 0
    said = capfd.readouterr()
    assert "is ignored" in said.err and "interpolated" not in said.out


def test_from_an_export(first, tmp_path, capfd):
    """Its tokenizer comes along: the captions of 20 of the 40 examples give other words."""
    export, imported, run = (tmp_path / name for name in ("export", "imported", "run"))
    assert main(["export", str(first), "--format", "safetensors", "--out", str(export)]) == 0
    assert train(run, "--init", export, "--config.steps=1", "--config.data.source.size=20",
                 "--config.data.vocab_size=60") == 0
    assert main(["import", str(export), "--out", str(imported)]) == 0
    words = [(folder / "tokenizer" / "vocab.txt").read_text()
             for folder in (first, export, run, imported)]
    assert len(set(words)) == 1
    one, other = read_stored(first).leaves, read_stored(imported).leaves
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path])
    capfd.readouterr()
    assert train(imported, "--config.steps=1") == 2
    assert "holds imported weights, not a run" in capfd.readouterr().err


def test_other_heads(first, tmp_path, capfd):
    assert train(tmp_path / "run", "--init", first, "--config.model.text_heads=4") == 2
    assert "model.text_heads=2, but the config has 4" in capfd.readouterr().err


def test_another_tokenizer(first, tmp_path, capfd):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words))
    assert train(tmp_path / "run", "--init", first, "--config.steps=1",
                 f"--config.data.tokenizer={tmp_path / 'words'}") == 2
    assert "The tokenizer of this run has 7 words" in capfd.readouterr().err


def test_no_weights_there(tmp_path, capfd):
    assert train(tmp_path / "run", "--init", tmp_path / "absent") == 2
    assert "is no work directory; give one, or make one of other weights" in (
        capfd.readouterr().err)
