"""The work directory: found unusable before training, and tied to its config."""

import contextlib
import json

import numpy as np
import pytest
from etils import epath

from albef_jax.config import default_config, to_json
from albef_jax.errors import UserError
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.workdir import (
    compare_config, make_writable, mend, owe, owed, read_config, record_of, TOKENIZER_FILES,
    write_config,
)


def test_file_instead_of_folder(tmp_path):
    (tmp_path / "run").write_text("")
    for place in ("run", "run/below"):
        with pytest.raises(UserError, match="cannot be written"):
            make_writable(epath.Path(tmp_path / place), is_writer=True)


def test_makes_and_leaves_an_empty_folder(tmp_path):
    make_writable(epath.Path(tmp_path / "a" / "b"), is_writer=True)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_config_round_trip_leaves_one_file(tmp_path):
    workdir, config = epath.Path(tmp_path), default_config()
    write_config(config, workdir, is_writer=True)
    assert to_json(read_config(workdir)) == to_json(config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_absent_and_damaged_config(tmp_path):
    with pytest.raises(UserError, match="config.json does not exist; give the work directory"):
        read_config(epath.Path(tmp_path))
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="is not the config of a run"):
        read_config(epath.Path(tmp_path))


@pytest.fixture
def run(tmp_path):
    """A work directory with a checkpoint, whose record has its config and tokenizer."""
    workdir, config = epath.Path(tmp_path), default_config().unlock()
    config.seed = 7
    (workdir / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        (workdir / name).write_text(f"{name} é\r\n")
    write_config(config, workdir, is_writer=True)
    with contextlib.closing(Checkpointer(workdir, config.checkpoint,
                                         record_of(config, workdir))) as checkpointer:
        checkpointer.save(4, {"a": np.zeros(2)}, wait=True)
    return workdir


@pytest.mark.parametrize("damage", [None, "", "[]", "5", "{}", "null", '{"seed": ', b"\xff\xfe"])
def test_the_checkpoint_has_the_config_of_its_run(run, damage, capsys):
    path = run / "config.json"
    config, text = to_json(read_config(run)), path.read_text()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    assert to_json(read_config(run)) == config
    assert "the config of the newest checkpoint is used" in capsys.readouterr().err
    mend(run, is_writer=True)
    assert "config.json is missing or damaged; it is restored" in capsys.readouterr().err
    assert to_json(read_config(run)) == config and json.loads(path.read_text()) == json.loads(text)
    mend(run, is_writer=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["emptied", "gone", "changed"])
def test_the_checkpoint_has_the_tokenizer_of_its_run(run, damage, capsys):
    before = {name: (run / name).read_bytes() for name in TOKENIZER_FILES}
    if damage == "changed":
        (run / TOKENIZER_FILES[0]).write_text("other")
    else:
        (run / "tokenizer").rmtree()
    if damage == "emptied":
        (run / "tokenizer").mkdir()
    mend(run, is_writer=False)
    assert (run / TOKENIZER_FILES[0]).exists() == (damage == "changed")
    mend(run, is_writer=True)
    assert "tokenizer.json is missing or damaged; it is restored" in capsys.readouterr().err
    assert before == {name: (run / name).read_bytes() for name in TOKENIZER_FILES}


def test_evaluations_that_are_owed(tmp_path):
    workdir = epath.Path(tmp_path)
    assert owed(workdir, 40) == []
    owe(workdir, 40, {"dev": None}, is_writer=False)
    assert owed(workdir, 40) == []
    owe(workdir, 40, {"dev": None}, is_writer=True)
    assert owed(workdir, 40) == ["dev"] and owed(workdir, 41) == []
    for text in ("[]", '{"step": 40}', "{"):
        (workdir / "owed.json").write_text(text)
        assert owed(workdir, 40) == []
    owe(workdir, 40, (), is_writer=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change, sentence", [
    ("seed", r"holds a run with config.seed=0, not 1"),
    ("model.vit_depth", r"config.model.vit_depth=12, not 13"),
    ("data.fingerprint", "holds a run on other data"),
])
def test_what_must_not_change(tmp_path, change, sentence):
    workdir, config = epath.Path(tmp_path), default_config()
    write_config(config, workdir, is_writer=True)
    block = config
    for name in change.split(".")[:-1]:
        block = block[name]
    leaf = change.split(".")[-1]
    block[leaf] = block[leaf] + ("x" if leaf == "fingerprint" else 1)
    with pytest.raises(UserError, match=sentence):
        compare_config(config, workdir, is_writer=True)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_what_may_change_is_said(tmp_path, capsys):
    workdir, config = epath.Path(tmp_path), default_config()
    compare_config(config, workdir, is_writer=True)  # a new run: nothing to compare
    write_config(config, workdir, is_writer=True)
    config.steps, config.log_every = 10, 5
    compare_config(config, workdir, is_writer=True)
    said = capsys.readouterr().err
    assert "resuming with config.steps=10, which was 0" in said
    assert "resuming with config.log_every=5, which was 50" in said
