"""Mistakes on the command line: exit code 2 and one sentence, before anything is trained."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from albef_jax.cli import main, written

TINY = str(Path(__file__).with_name("tiny.py"))


@pytest.fixture
def fails(capsys, tmp_path):
    """`fails(*arguments)` runs a command that must fail; returns its only line."""
    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("albef: ") and line.endswith(".")
        assert not (tmp_path / "run" / "checkpoints").exists()
        return line

    return run


@pytest.mark.parametrize("override, words", [
    ("batch_size=20 --config.objective.queue_size=40",
     ["batch_size 20", "group_size 8", "set batch_size to 16"]),
    ("group_size=1", ["group_size is 1"]),
    ("accumulation=3", ["3 micro-step(s)"]),
    ("objective.queue_size=40", ["queue_size 40", "multiple of batch_size 16", "to 32"]),
    ("objective.queue_size=8", ["queue_size 8", "set queue_size to 16"]),
    ("model.image_size=36", ["image_size 36", "patch_size 8", "set it to 32"]),
    ("model.vit_heads=5", ["vit_width 32", "vit_heads 5"]),
    ("model.text_heads=3", ["text_width 32", "text_heads 3"]),
    ("model.dtype=float16", ["'float16'", "'bfloat16'"]),
    ("data.text_length=64", ["text_length 64", "max_positions 32"]),
    ("seed=-1", ["config.seed is -1", "from 0 to"]),
    ("task=captioning", ["config.task is 'captioning'", "pretrain, retrieval"]),
    ("objective.negatives=nearest", ["'nearest'", "'hard'", "'random'"]),
    ("objective.positives=text", ["'text'", "'pair'", "'image'"]),
    ("objective.negatives=random --config.objective.random_steps=5", [
        "how many of the hard negatives are random", "set it to 'hard'"]),
    ("objective.itc=False", ["negatives is 'hard'", "itc is False", "negatives='random'"]),
    ("optimizer.schedule=stairs", ["'stairs'", "cosine", "albef_steps"]),
    ("data.source.kind=video", ["'video'", "synthetic"]),
    ("data.engine=gpu", ["'gpu'", "pillow"]),
    ("data.source.size=10", ["10 examples", "one batch of 16"]),
    ("epochs=0 --config.steps=0", ["steps and config.epochs are both 0"]),
    ("learning_rate=1", ["config.learning_rate does not exist"]),
    ("batch_size=many", ["config.batch_size is a int (16); 'many' is not"]),
    ("model=3", ["config.model is a block"]),
    ("checkpoint.best_mode=most", ["best_mode is 'most'", "'max' or 'min'"]),
    ("checkpoint.keep_latest=0", ["keep_latest is 0"]),
])
def test_values_that_do_not_fit(fails, tmp_path, override, words):
    line = fails("train", "--config", TINY, "--workdir", tmp_path / "run",
                 *f"--config.{override}".split())
    assert all(word in line for word in words), line


def test_files_that_are_not_there(fails, tmp_path):
    assert "gone.py does not exist" in fails("train", "--config", "gone.py", "--workdir", tmp_path)
    assert "gone.py does not exist" in fails("bench", "--config", "gone.py:small")
    assert "config.json does not exist" in fails("evaluate", tmp_path)


def test_arguments_that_are_not_known(fails, tmp_path):
    line = fails("train", "--config", TINY, "--workdir", tmp_path, "--learning_rate=1")
    assert "'--learning_rate=1' is not understood" in line and "--config.batch_size=64" in line


@pytest.mark.parametrize("arguments, words", [
    ([], "required"),
    (["train", "--config", TINY], "--workdir"),
    (["train", "--config", TINY, "--workdir", "w", "--profile", "5:3"], "--profile"),
    (["bench", "--config", TINY, "--steps", "0"], "--steps"),
    (["fly"], "invalid choice"),
])
def test_usage(capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [
    ["embed", "w", "photos", "--out", "a.npz"], ["search", "w", "photos", "a dog"],
    ["explain", "w", "--image", "a.jpg", "--text", "a dog", "--out", "a.png"],
    ["answer", "w", "--image", "a.jpg", "--question", "who"], ["report", "w"],
    ["import", "a.pth", "--out", "w"], ["export", "w", "--format", "safetensors", "--out", "e"],
    ["data", "check", "rows.json"], ["data", "shard", "rows.json", "--out", "d"]])
def test_commands_without_a_config_have_nothing_to_override(fails, arguments):
    line = fails(*arguments, "--config.batch_size=64")
    assert "'--config.batch_size=64' is not understood; see albef --help" in line


@pytest.mark.parametrize("query, words", [
    (" ", "the text is empty"), (os.fsdecode(b"caf\xe9"), "the text is not UTF-8")])
def test_queries_that_say_nothing(capsys, query, words):
    for command in (["search", "w", "photos", query],
                    ["explain", "w", "--image", "a.jpg", "--out", "a.png", "--text", query],
                    ["answer", "w", "--image", "a.jpg", "--question", query]):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 2 and words in capsys.readouterr().err


def test_a_query_is_utf8_in_any_locale():
    """Under LANG=C Python keeps the bytes of an argument as surrogates."""
    assert written("caf\udcc3\udca9") == "café" == written("café")


@pytest.fixture
def manifest(tmp_path):
    """A manifest with one wrong row, which `albef data check` prints."""
    (tmp_path / "rows.json").write_text('[{"image": "gone.jpg", "caption": "a dog"}]')
    return tmp_path / "rows.json"


@pytest.mark.parametrize("write_through", [False, True])
def test_a_reader_that_has_left(manifest, monkeypatch, capfd, write_through):
    """`albef data check | head`"""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        stdout.reconfigure(write_through=write_through)
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["data", "check", str(manifest)]) == 141
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_output(manifest, monkeypatch, capsys):
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["data", "check", str(manifest)]) == 2
    assert "the output cannot be written (No space left on device); make room" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("text, line", [
    ("def get_config(variant=None):\n    return 1 / 0\n", 2),
    ("x = 3\ny = x.gone\n", 2),
    ("def get_config(:\n", 1),
])
def test_errors_in_a_config_file_keep_their_traceback(tmp_path, capsys, text, line):
    (tmp_path / "own.py").write_text(text)
    assert main(["train", "--config", str(tmp_path / "own.py"), "--workdir", str(tmp_path)]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"albef: {tmp_path}/own.py failed with ") and first.endswith(".")
    (place, *_) = [shown for shown in rest if shown.startswith("  File")]
    assert place.startswith(f'  File "{tmp_path}/own.py", line {line}')


COMMANDS = ("train", "profile", "evaluate", "report", "embed", "search", "score", "explain",
            "answer", "caption", "app", "features", "import", "export", "push", "pull", "data", "plan",
            "bench")


def test_help_is_instant():
    """It names every command and imports nothing that takes its time."""
    script = ("import sys; from albef_jax.cli import main\ntry: main(['--help'])\n"
              "except SystemExit as end: print(end.code, *{'jax', 'numpy', 'ml_collections', "
              "'etils'} & set(sys.modules))")
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    text = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True,
                          text=True, env=found).stdout
    *text, last = text.splitlines()
    assert last == "0" and "--config.key=value" in text[-1]
    assert [line.split()[0] for line in text if re.match(r" {4}\w", line)] == [*COMMANDS]


def test_every_command_has_help(capsys):
    for command in (*((name,) for name in COMMANDS), ("data", "check"), ("data", "shard")):
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: albef {' '.join(command)} [-h]")
