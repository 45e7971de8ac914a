"""A task from outside is exported, imported, loaded and started from, without a line about it."""

from pathlib import Path

import numpy as np
import pytest

import albef_jax
from albef_jax.cli import main
from albef_jax.errors import UserError
from albef_jax.weights.stored import read_stored
from albef_jax.weights.transfer import rule_for

FILE = Path(__file__).parent / "outside_task.py"
TASK = f"{FILE}:Linear"
VECTORS = [[1.0, 2.0, 3.0], [0.0, -4.0, 0.5], [7.0, 7.0, 1.0]]


def train(workdir, *flags):
    return main(["train", "--config", str(FILE), "--workdir", str(workdir), *map(str, flags)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("outside") / "run"
    assert train(workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def exported(run):
    folder = run.parent / "export"
    assert main(["export", str(run), "--format", "safetensors", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def imported(exported):
    folder = exported.parent / "imported"
    assert main(["import", str(exported), "--out", str(folder)]) == 0
    return folder


def test_export_and_import_keep_everything(run, exported, imported):
    stored = read_stored(run)
    assert set(stored.leaves) == {
        ("params", "linear", "kernel"), ("params", "linear", "bias"),
        ("teacher", "linear", "kernel"), ("memory", "batches")}
    assert stored.leaves["memory", "batches"] == 2 and stored.tokenizer is None
    for folder in (exported, imported):
        again = read_stored(folder)
        assert again.config.to_dict() == stored.config.to_dict() and again.config.task == TASK
        assert again.leaves.keys() == stored.leaves.keys()
        for path, leaf in stored.leaves.items():
            np.testing.assert_array_equal(again.leaves[path], leaf)
    card = (exported / "README.md").read_text()
    assert "| `outputs` | 2 |" in card and "| `name` | linear |" in card and TASK in card


@pytest.mark.parametrize("weights", ["online", "momentum"])
def test_predictions(run, exported, imported, weights):
    """From everywhere; of three vectors in batches of two."""
    leaves = read_stored(run).leaves
    kernel = leaves["params" if weights == "online" else "teacher", "linear", "kernel"]
    expected = np.array(VECTORS) / 4 @ kernel + leaves["params", "linear", "bias"]
    for folder in (run, exported, imported):
        model = albef_jax.load(folder, weights, batch_size=2, facts={"vector": {"unit": 4.0}})
        found = model.predict("project", vector=[np.array(vector) for vector in VECTORS])
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_array_equal(model.predict("project", vector=VECTORS[2:]), found[2:])
    assert np.abs(leaves["teacher", "linear", "kernel"]
                  - leaves["params", "linear", "kernel"]).max() > 0


def test_a_run_starts_from_it(run, exported, tmp_path, capfd):
    """With a rate of nearly zero: what is saved is what came in."""
    flags = [f"--config.optimizer.{name}=1e-12" for name in ("peak_lr", "warmup_lr", "min_lr")]
    assert train(tmp_path / "second", "--init", exported, "--config.steps=1", *flags) == 0
    assert "4 parameters filled, 0 fresh" in capfd.readouterr().out
    old, new = read_stored(run).leaves, read_stored(tmp_path / "second").leaves
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(new["params", "linear", name],
                                   old["params", "linear", name], atol=1e-8)
    assert new["memory", "batches"] == 3
    assert train(tmp_path / "third", "--init", exported, "--config.model.outputs=4") == 2
    assert "kernel has shape [3, 2], not [3, 4]" in capfd.readouterr().err


def test_what_it_has_not(run, exported, tmp_path, capfd):
    assert main(["export", str(run), "--format", "salesforce", "--out", str(tmp_path / "a")]) == 2
    assert ("the public code does not have; export it with --format safetensors"
            in capfd.readouterr().err)
    assert main(["import", str(exported), "--out", str(tmp_path / "b"), "--image-size", "64"]) == 2
    assert "has no patches of images; leave out --image-size" in capfd.readouterr().err
    with pytest.raises(UserError, match=f"cannot start from pretrain weights; .* from {TASK}.$"):
        rule_for("pretrain", TASK)
    with pytest.raises(UserError, match="A vqa run cannot start from .*Linear weights; it can "
                                        "start from vqa, pretrain.$"):
        rule_for(TASK, "vqa")
    model = albef_jax.load(run)
    with pytest.raises(UserError, match=r"fact 'unit' .*facts=\{'vector': \{'unit': ...\}\}"):
        model.predict("project", vector=VECTORS)
    model = albef_jax.load(run, facts={"vector": {"unit": 1}})
    with pytest.raises(UserError, match=r"The vector 1 cannot be read \(2 numbers\)"):
        model.predict("project", vector=[VECTORS[0], [1.0, 2.0]])
    with pytest.raises(UserError, match="has no match; it has predict, so load"):
        model.match("a.png", "a")
    with pytest.raises(UserError, match="whose model has no dtype; leave out dtype='bfloat16'"):
        albef_jax.load(run, dtype="bfloat16")
