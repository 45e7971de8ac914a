"""`albef data check`: what it counts, what it lists, and that it says what training says."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest

from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.errors import UserError
from albef_jax.preflight.check import check
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
    assert "captions without a word once they are cleaned: 2" in text and "captions cut to 30 words: 1" in text
    words = {line[0]: line[1] for line in lines[text.index("words per caption") + 1 :]}
    assert words["0"] == "2" and words["1-4"] == "10" and words["5-9"] == "8"
    assert words["30+"] == "1"
    sides = [line[:2] for line in lines[-1:]]
    assert sides == [["32-63", "8"]]


def test_counts_texts_that_say_nothing(write, capsys):
    texts = ("a dog", "?!", "12 - 34", "[MASK][SEP]", "\u72d7", "...", "so [MASK] it")
    assert check([write("train.json", pairs(range(8), *texts))]) == []
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "captions without a word once they are cleaned: 16" in lines
    assert "captions without a letter: 8 ('12 - 34')" in lines
    assert ("captions with [PAD], [UNK], [CLS], [SEP], [MASK], which are read as text: 16 "
            "('[MASK][SEP]', 'so [MASK] it')") in lines


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
    assert "7 of 35 examples could not be read" in problem and "data.max_bad_share=0.01" in problem
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
    (problem,) = check([rows, f"json:{write('train.json', pairs([6]))}"])
    assert problem.startswith("sub/train.json: none of the 1 images can be read: 6.jpg (missing)")
    out = capsys.readouterr().out
    assert "missing images: 1 (6.jpg)" in out and "json:train.json: 1 rows" in out


def field_lines(printed):
    """Field -> what is printed of it."""
    return dict(line[2:].split(": ", 1) for line in printed.splitlines()
                if line.startswith("  ") and ": " in line)


def test_classes_are_counted(write, tmp_path, capsys):
    rows = [{"image": f"{i}.jpg", "sentence": "a dog", "label": label} for i, label in enumerate(
        ["neutral", "entailment", "neutral", "neutral"])]
    (tmp_path / "ve.json").write_text(json.dumps(rows))
    assert check(["ve:ve.json"]) == []
    printed = capsys.readouterr().out
    assert printed.startswith("ve:ve.json: 4 rows, 4 images, 4 captions\n")
    assert field_lines(printed)["label"] == (
        "4, 2 different: contradiction (0), neutral (3), entailment (1)")


def test_answers_are_counted(write, tmp_path, capsys):
    rows = [{"image": f"{i}.jpg", "question": "what is it", "question_id": i,
             "answer": ["yes"] * 9 + ["no"] * (i % 2)} for i in range(20)]
    (tmp_path / "vqa.json").write_text(json.dumps(rows))
    assert check(["vqa:vqa.json"]) == []
    lines = field_lines(capsys.readouterr().out)
    assert lines["answers"] == "30, 1 to 2 per row, 2 different: yes (20), no (10)"
    assert lines["annotators"] == "190, 9 to 10 per row, 2 different: yes (180), no (10)"
    assert lines["question_id"] == "20, 20 different"  # too many to list


def test_boxes_are_counted(write, tmp_path, capsys, config_file):
    """Also those that an evaluation alone has."""
    rows = [{"image": f"{i}.jpg", "text": "a dog", "bbox": [i, 2, 10, 5], "width": 60,
             "height": 40} for i in range(20)]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    (tmp_path / "found.json").write_text(json.dumps(
        {f"{i}.jpg": [[0, 0, 9, 9, 0.5]] * (i % 3) for i in range(20)}))
    write("train.json", pairs(range(20))), write("dev.json", pairs([1, 2, 3]))
    config = load_config(config_file)
    boxes = dict(kind="grounding", files=("boxes.json",), detections="found.json")
    config.evals.dev.source = boxes
    assert check([], config=config) == []
    lines = field_lines(capsys.readouterr().out)
    assert lines["box"] == "20, 20 different"
    assert lines["size"] == "20, 1 different: (60, 40) (20)"
    assert lines["proposals"] == "19, 0 to 2 per row, 1 different: (0, 0, 9, 9) (19)"


def test_parts_of_a_mixture_and_fields_that_only_one_has(write, tmp_path, capsys, config_file):
    (tmp_path / "ve.json").write_text(json.dumps(
        [{"image": f"{i}.jpg", "sentence": "a dog", "label": "neutral"} for i in range(8)]))
    write("train.json", [*pairs(range(12)), ("gone.jpg", "x")]), write("dev.json", pairs([1, 2, 3]))
    config = load_config(config_file)
    config.data.source = dict(kind="mixture", parts=(
        dict(source="json:train.json", weight=1.0), dict(source="ve:ve.json", weight=1.0)))
    assert check([], config=config) == []
    printed = capsys.readouterr().out
    # Images of different parts are different ones until their pixels are compared.
    assert printed.startswith("data.source: 21 rows, 21 images, 21 captions\n")
    assert "missing images: 1 (gone.jpg)" in printed and "by equal pixels: 8 (" in printed
    assert "label" not in printed


def test_a_source_from_outside(outside_config, capsys):
    """No image and no text; what cannot be read is listed, and stops training."""
    config = load_config(outside_config)
    assert check([], config=config) == []
    printed = capsys.readouterr().out
    lines = field_lines(printed)
    assert printed.startswith("data.source: 40 rows\n") and "captions" not in printed
    assert lines["sound"] == lines["motion"] == "40, 1 different: float32 [6, 4] (40)"
    assert lines["place"] == "40, 2 different: street (30), wood (10)"
    assert lines["heard"] == "39, 0 to 2 per row, 2 different: bird (26), car (13)"

    config.data.source = dict(kind=config.data.source.kind, gone=(1, 3, 5, 7))
    (problem,) = check([], config=config)
    assert "broken values of sound: 4 (recording 1 (missing), " in capsys.readouterr().out
    assert problem.startswith("data.source: 4 of 40 examples could not be read")
    config.batch_size = 64
    problem = check([], config=config)[-1]
    assert "40 examples, fewer than one batch of 64" in problem


def test_what_a_task_does_not_get(outside_config, write):
    """Said in the words of training, once."""
    config = load_config(outside_config)
    config.data.source = dict(kind="json", files=(write("train.json", pairs(range(20))),))
    (problem,) = check([], config=config)
    assert problem.startswith("data.source has no field 'sound', which the task asks for")


def test_a_name_of_a_value_that_no_evaluator_has(write, config_file):
    write("train.json", pairs(range(20))), write("dev.json", pairs([1, 2, 3]))
    best = "--config.checkpoint.best_metric=dev/x"
    (problem,) = check([], config=load_config(config_file, [best]))
    assert "best_metric is 'dev/x'" in problem and "i2t_r1" in problem


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
