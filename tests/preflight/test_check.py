"""`albef data check`: what it counts, what it lists, and that it says what training says."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest

from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.preflight.check import check
from albef_jax.errors import UserError
from albef_jax.train import train

TINY = str(Path(__file__).parents[1] / "tiny.py")


@pytest.fixture
def write(tmp_path, photo_jpeg, monkeypatch):
    """`write(name, rows)`: a manifest of rows (image, caption...) beside 20 images."""
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(photo_jpeg(40 + 10 * number, 60, number))

    def make(name, rows):
        rows = [{"image": image, "caption": texts} for image, *texts in rows]
        (tmp_path / name).write_text(json.dumps(rows))
        return name

    return make


@pytest.fixture
def config_file(tmp_path):
    """A config file that trains on train.json in batches of 16 and evaluates on dev.json."""
    text = f"""
        import runpy
        def get_config(variant=None):
            config = runpy.run_path({TINY!r})["get_config"]()
            config.data.source = dict(kind="json", files=("train.json",))
            dev = dict(kind="json", files=("dev.json",))
            config.evals.dev = dict(kind="retrieval", source=dev, k=2, batch_size=4)
            config.evals.words = dict(kind="masked", source=dev, batch_size=4)
            return config
    """
    (tmp_path / "config.py").write_text(textwrap.dedent(text))
    return str(tmp_path / "config.py")


def pairs(numbers, *texts):
    return [(f"{number}.jpg", *(texts or ("a dog",))) for number in numbers]


def test_counts_rows_captions_and_sizes(write, capsys):
    rows = pairs(range(8), "one two", "one two three four five six") + pairs([0, 1], "a", "")
    assert check([write("train.json", [*rows, ("2.jpg", "word " * 31)])]) == []
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "train.json: 11 rows, 8 images, 21 captions".split()
    text = [" ".join(line) for line in lines]
    assert "captions without a word: 2" in text and "captions cut to 30 words: 1" in text
    words = {line[0]: line[1] for line in lines[text.index("words per caption") + 1 :]}
    assert words["0"] == "2" and words["1-4"] == "10" and words["5-9"] == "8"
    assert words["30+"] == "1"
    sides = [line[:2] for line in lines[-1:]]
    assert sides == [["32-63", "8"]]


def test_longest_bar_is_the_most_frequent(write, capsys):
    check([write("train.json", pairs(range(8), "a", "b", "c c c c c c"))])
    bars = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if "#" in line]
    assert bars[0] == ["16", 40 * "#"] and bars[1] == ["8", 20 * "#"]


def test_missing_broken_small_and_repeated_images(
    write, tmp_path, capsys, broken_files, odd_files
):
    for name, contents in (broken_files | odd_files).items():
        (tmp_path / name).write_bytes(contents)
    shutil.copy(tmp_path / "3.jpg", tmp_path / "copy.jpg")
    names = [*broken_files, *odd_files, "copy.jpg", "gone.jpg", "gone2.jpg"]
    rows = pairs(range(20)) + [(name, "x") for name in names]
    (problem,) = check([write("train.json", rows)])
    out = capsys.readouterr().out
    assert "missing images: 2 (gone.jpg, gone2.jpg)" in out
    assert f"broken images: {len(broken_files)} (" in out and "zero.jpg (empty file)" in out
    assert "by equal pixels: 2 (3.jpg = copy.jpg, pixel.jpg = pixel.png)" in out
    assert "side below 16 pixels: 4 (pixel.jpg, pixel.png, wide.jpg, tall.png)" in out
    assert "7 of 35 images could not be read" in problem and "data.max_bad_share=0.01" in problem
    assert all(name in problem for name in (*broken_files, "gone.jpg", "gone2.jpg"))


def test_three_broken_images_do_not_stop_training(write, capsys):
    rows = pairs(range(10)) + [(f"gone{i}.jpg", "x") for i in range(3)]
    assert check([write("train.json", rows)]) == []
    assert "missing images: 3" in capsys.readouterr().out


def test_images_in_two_splits(write, tmp_path, capsys):
    shutil.copy(tmp_path / "3.jpg", tmp_path / "copy.jpg")
    train_rows = write("train.json", pairs(range(10)))
    dev_rows = write("dev.json", [("copy.jpg", "x"), ("5.jpg", "y"), ("11.jpg", "z")])
    assert check([train_rows, dev_rows]) == []
    out = capsys.readouterr().out
    assert "images in train.json and in dev.json, by equal pixels: 2" in out
    assert "(3.jpg = copy.jpg, 5.jpg = 5.jpg)" in out


def test_everything_that_is_wrong_is_listed(write, tmp_path, capsys):
    rows = pairs(range(4)) + [(7, "x"), ("5.jpg",)]
    problems = check([write("train.json", rows), "gone.json", "scenes:film"], ["nowhere"])
    assert [problem.split(" (counted")[0] for problem in problems[:2]] == ["Row 4", "Row 5"]
    wanted = "nowhere does not exist", "could not be read", "gone.json cannot", "nowhere", "film"
    for problem, words in zip(problems[2:], wanted, strict=True):
        assert words in problem
    assert "train.json: 4 rows" in capsys.readouterr().out


def test_images_of_a_tar_and_other_sources(write, tmp_path, capsys):
    shutil.make_archive(str(tmp_path / "images"), "tar", tmp_path, "6.jpg")
    (tmp_path / "sub").mkdir()
    rows = write("sub/train.json", [("6.jpg", "x")])
    assert check([rows], [str(tmp_path / "images.tar")]) == []
    assert check([rows, f"json:{write('train.json', pairs([6]))}"]) == []
    out = capsys.readouterr().out
    assert "missing images: 1 (6.jpg)" in out and "json:train.json: 1 rows" in out


def test_nothing_to_check():
    with pytest.raises(UserError, match="nothing to check"):
        check([])


@pytest.mark.parametrize(
    "rows, dev_rows, words",
    [
        (pairs(range(10)), pairs([1, 2, 3]), "10 examples, fewer than one batch of 16"),
        (pairs(range(20)), [("1.jpg", "x"), ("2.jpg",)], "Row 1 .* empty caption list"),
        ([*pairs(range(20)), (3, "x")], pairs([1, 2, 3]), "Row 20 .*must be an object"),
        (pairs(range(20)), [], "holds no rows"),
    ],
)
def test_says_what_training_says(write, config_file, tmp_path, rows, dev_rows, words):
    write("train.json", rows), write("dev.json", dev_rows)
    config = load_config(config_file)
    (problem,) = check([], config=config)
    with pytest.raises(UserError, match=words) as error:
        train(config, str(tmp_path / "run"))
    assert str(error.value) == problem


def test_an_evaluation_needs_all_images(write, config_file):
    write("train.json", [*pairs(range(20)), ("gone.jpg", "x")])
    write("dev.json", [*pairs([1, 2]), ("gone.jpg", "x")])
    (problem,) = check([], config=load_config(config_file))
    assert "1 of 3 images" in problem and "gone.jpg (missing)" in problem


def test_command(write, config_file, capsys):
    train_rows = write("train.json", pairs(range(20)))
    write("dev.json", pairs([1, 2, 3]))
    assert main(["data", "check", train_rows, "dev.json"]) == 0
    assert "training would start" in capsys.readouterr().out
    arguments = ["data", "check", "--config", config_file]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "data.source: 20 rows" in out and out.count("evals.") == 2  # its name, its duplicates
    assert main([*arguments, "--config.batch_size=32"]) == 2
    captured = capsys.readouterr()
    assert "training would start" not in captured.out
    assert captured.err.splitlines()[-1].startswith("albef: The data source has 20 examples")
    assert main(["data", "check", "gone.json", "--fast"]) == 2
    assert "'--fast' is not understood" in capsys.readouterr().err
