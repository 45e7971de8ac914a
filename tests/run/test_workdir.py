"""The work directory: found unusable before training, and tied to its config."""

import json

import pytest
from etils import epath

from albef_jax.config import default_config, to_json
from albef_jax.errors import UserError
from albef_jax.run.workdir import compare_config, make_writable, read_config, write_config


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
    with pytest.raises(UserError, match="not valid JSON"):
        read_config(epath.Path(tmp_path))


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
