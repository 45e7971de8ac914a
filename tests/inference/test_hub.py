"""`albef push` and `pull`: the real client of the Hugging Face hub against one in memory."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.errors import UserError
from albef_jax.weights.hub import Address
from fake_hub import TOKEN, Hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server
        server.shutdown()


@pytest.fixture
def python(hub, tmp_path):
    """`python(code, *arguments, token=...)` in a process that knows this hub alone."""
    def run(code, *arguments, token=TOKEN):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
            capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
                                      **hub.environment(tmp_path / "home", token)})

    return run


@pytest.fixture
def shell(python):
    """`shell("push", ...)` -> exit code, stdout, stderr."""
    def run(*arguments, **options):
        done = python("import sys; from albef_jax.cli import main; sys.exit(main())", *arguments,
                      **options)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def logged(workdir):
    """The run, with two lines of losses and an evaluation."""
    rows = [{"step": 5, "loss": 9.0, "itc": 4.0, "itm": 0.6, "mlm": 4.4},
            {"step": 7, "loss": 8.0, "itc": 3.5, "itm": 0.5, "mlm": 4.0},
            {"step": 7, "dev/i2t_r1": 12.5, "dev/i2t_r5": 50.0}]
    path = workdir / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield workdir
    path.unlink()


def test_there_and_back(hub, python, shell, logged, tmp_path):
    """Card, curves and weights; by name, by the commit that was printed, and as a folder."""
    code, out, err = shell("push", logged, "someone/tiny")
    assert code == 0, err
    ((oid, files),) = hub.repos["someone/tiny"]
    assert f"'hf://someone/tiny@{oid}'" in out
    assert {"model.safetensors", "config.json", "README.md", "curves.png"} <= files.keys()
    assert all(name.split("/")[0] in ("model.safetensors", "config.json", "README.md",
                                      "curves.png", "tokenizer") for name in files)
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: albef_jax\n") and "\n# license: choose" in card
    assert 'albef_jax.load("hf://someone/tiny")' in card and "![Losses over steps]" in card
    assert "i2t" in card and "12.50" in card and "steps of 16 on `synthetic" in card
    assert files["curves.png"].startswith(b"\x89PNG")

    assert shell("pull", "someone/tiny", "--out", tmp_path / "model")[0] == 0
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        name.split("/")[0] for name in files} - {".gitattributes"}
    pulled, original = albef_jax.load(tmp_path / "model"), albef_jax.load(logged)
    jax.tree.map(np.testing.assert_array_equal, pulled.params, original.params)

    shell("push", logged, "someone/tiny", "--weights", "momentum")
    code = ("import sys, albef_jax; model = albef_jax.load(sys.argv[1]); "
            "print(model.encode_text(['a dog'])[0].sum())")
    first, latest = (python(code, address) for address in (
        f"hf://someone/tiny@{oid}", "hf://someone/tiny"))
    assert first.returncode == latest.returncode == 0, first.stderr + latest.stderr
    assert float(first.stdout) == pytest.approx(float(original.encode_text(["a dog"])[0].sum()),
                                                abs=1e-4)
    assert float(first.stdout) != float(latest.stdout)


@pytest.mark.parametrize("arguments, token, words", [
    (("push", "{run}", "someone/tiny"), "", "put a token that may write into HF_TOKEN"),
    (("push", "{run}", "someone/tiny"), "hf_wrong", "the token in HF_TOKEN may not do this (401)"),
    (("push", "{run}", "tiny"), TOKEN, "'tiny' names no model on the hub; write ORG/NAME"),
    (("pull", "someone/none", "--out", "{new}"), TOKEN, "The hub has no model someone/none"),
    (("pull", "someone/other@v9", "--out", "{new}"), TOKEN, "has no revision v9"),
    (("pull", "someone/other", "--out", "{new}"), TOKEN, "holds no model.safetensors"),
    (("pull", "someone/other", "--out", "{run}"), TOKEN, "exists; give a new path")])
def test_mistakes_are_one_sentence(hub, shell, workdir, tmp_path, arguments, token, words):
    hub.repos["someone/other"] = [("a" * 40, {"weights.bin": b"pickled", "README.md": b"hi"})]
    code, _, err = shell(*(argument.format(run=workdir, new=tmp_path / "new")
                           for argument in arguments), token=token)
    line = err.splitlines()[-1]  # after bars of what is downloaded
    assert code == 2 and line.startswith("albef: ") and words in line and "Traceback" not in err
    assert not (tmp_path / "new").exists()
    assert not any(path.endswith(".bin") for _, path in hub.requests)


def test_a_hub_that_is_not_there(hub, python, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "url", "http://127.0.0.1:9")
    done = python("import albef_jax; albef_jax.load('hf://someone/tiny')")
    assert "UserError" in done.stderr.splitlines()[-1] and "http://127.0.0.1:9" in done.stderr


def test_addresses():
    assert Address.of("hf://me/my-model.v2@refs/pr/1") == ("me/my-model.v2", "refs/pr/1")
    assert Address.of("me/model") == ("me/model", None)
    for text in ("model", "hf://a/b/c", "https://hub/a/b", "a/b@"):
        with pytest.raises(UserError, match="names no model on the hub"):
            Address.of(text)
