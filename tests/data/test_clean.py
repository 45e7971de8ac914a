"""Rules of `albef data clean`, each by itself, and the command on files."""

import json

import numpy as np
from PIL import Image
import pytest

from albef_jax.cli import main
from albef_jax.data.clean import RULES, Pairs, clean_pairs, read_thresholds
from albef_jax.data.sources import make_source
from albef_jax.errors import UserError

NOTHING = {rule.name: None for rule in RULES}
GOOD = "a dog runs on grass"


def pairs_of(texts, images=None, sides=None, **scores):
    images = images or [f"{number}.jpg" for number in range(len(texts))]
    return Pairs.of(images, texts, np.array(sides or [(100, 80)] * len(texts)),
                    {name: np.array(values, float) for name, values in scores.items()})


def kept(name, threshold, pairs):
    """The rows that one rule alone keeps."""
    left, (dropped,) = clean_pairs(pairs, NOTHING | {name: threshold})
    assert sorted([*left, *dropped.rows]) == [*range(len(pairs.images))]
    assert dropped.left == len(left) and dropped.rule.name == name
    return left.tolist()


@pytest.mark.parametrize("name, threshold, texts, expected", [
    ("min-letters", 0.8, [GOOD, "1234 5678 ab", "see http://x.y now", "<b>a dog</b> runs",
                          "aaaaaah a dog", "a [MASK] dog runs", "ein Hündchen läuft", "", "дом и лес",
                          "cats &amp; dogs"], [0, 6, 8]),
    ("min-words", 3, [GOOD, "a dog", "one, two; three", "", "don't do it"], [0, 2, 4]),
    ("max-words", 4, [GOOD, "a dog runs"], [1]),
    ("max-rare", 0.4, ["a red dog runs", "a red cat runs", "a zyx qwv dog"], [0, 1]),
    ("max-images", 2, ["stock photo", "Stock photo!", "a dog", "stock, photo"], [2]),
    ("language", "en", ["a man is riding a brown horse on the beach",
                        "ein Mann reitet mit einem Pferd durch den Wald"], [0])])
def test_rules_about_texts(name, threshold, texts, expected):
    assert kept(name, threshold, pairs_of(texts)) == expected


def test_rules_about_images_and_scores():
    pairs = pairs_of([GOOD] * 4, sides=[(100, 80), (0, 0), (400, 90), (64, 64)],
                     itm=[0.9, 0.2, np.nan, 0.5], itc=[0.0, -0.2, 0.1, 0.2])
    assert kept("min-side", 64, pairs) == [0, 2, 3]
    assert kept("max-aspect", 4.0, pairs) == [0, 1, 3]
    assert kept("itm", 0.5, pairs) == [0, 3] and kept("itc", 0.0, pairs) == [0, 2, 3]
    with pytest.raises(UserError, match="the rows have no 'itm'; make them with `albef score`"):
        kept("itm", 0.5, pairs_of([GOOD]))


def test_the_best_texts_of_an_image():
    texts, images = ["a dog", "a dog runs fast", "a cat sits there", "the cat"], ["a", "a", "b", "b"]
    assert kept("best", 1, pairs_of(texts, images)) == [1, 2]
    assert kept("best", 1, pairs_of(texts, images, itc=[0.3, 0.1, np.nan, 0.0])) == [0, 3]
    assert kept("best", 1, pairs_of(texts, images, itc=[0.3, 0.1, 0.2, 0.1],
                                    itm=[0.1, 0.2, 0.1, 0.2])) == [1, 3]
    assert kept("best", 2, pairs_of(texts, images)) == [0, 1, 2, 3]


def test_rules_see_what_earlier_ones_left():
    """The best text of an image is not one that another rule dropped, and of nothing none is."""
    pairs = pairs_of([GOOD, "1234 5678 901234 5678", "a dog"], ["a"] * 3)
    left, dropped = clean_pairs(pairs, {"max-rare": None})
    assert left.tolist() == [0]
    assert {one.rule.name: one.rows.tolist() for one in dropped if len(one.rows)} == {
        "min-letters": [1], "min-words": [2]}
    left, dropped = clean_pairs(pairs_of([]), {})
    assert not len(left) and all(one.left == 0 for one in dropped)


def test_thresholds_of_the_command():
    assert read_thresholds(["--min-words=5", "--best=off", "--itc=-0.1", "--language=de"]) == {
        "min-words": 5, "best": None, "itc": -0.1, "language": "de"}
    for wrong, words in (("--min-word=3", "one of the rules min-side"), ("--best", "RULE=VALUE"),
                         ("--best=2.5", "whole number"), ("--itm=nan", "must have a number"),
                         ("--max-aspect=x", "must have a number")):
        with pytest.raises(UserError, match=words):
            read_thresholds([wrong])
    with pytest.raises(UserError, match="--language is 'english', which is none of the 1.. codes"):
        kept("language", "english", pairs_of([GOOD]))


@pytest.fixture
def folder(tmp_path):
    """Pairs with columns of scores: a good one, a second text, a bad score, a tiny image, none."""
    for name, side in (("a", 80), ("b", 80), ("small", 20)):
        Image.new("RGB", (side, side), "red").save(tmp_path / f"{name}.png")
    rows = [("a.png", GOOD, 0.9), ("a.png", "a dog runs on <b>grass", 0.95), ("a.png", GOOD + " now",
            0.8), ("b.png", "a dog runs on sand", 0.1), ("small.png", GOOD, 0.9),
            ("gone.png", GOOD, None)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(
        {"image": image, "caption": text, **({"itm": score} if score else {})})
        for image, text, score in rows))
    return tmp_path


def test_the_command_writes_a_manifest_and_a_page(folder, capsys):
    out = folder / "clean.json"
    assert main(["data", "clean", str(folder / "rows.jsonl"), "--out", str(out), "--itm=0.5"]) == 0
    said = capsys.readouterr().out
    assert "6 pairs" in said and "2 dropped,         4 left: the image cannot be read" in said
    assert f"1 pairs in {out}" in said
    assert json.loads(out.read_text()) == [{"image": "a.png", "caption": GOOD, "itm": 0.9}]
    assert make_source(f"json:{out}").text(0) == [GOOD]
    page = (folder / "clean.html").read_text()
    assert "a dog runs on &lt;b&gt;grass" in page and "gone.png" in page and "itm 0.100" in page
    assert page.count("data:image/") == 4  # of the five that were dropped one is not there
    lines = folder / "clean.jsonl"
    assert main(["data", "clean", str(folder / "rows.jsonl"), "--out", str(lines), "--best=off",
                 "--max-rare=off"]) == 0
    assert len(lines.read_text().splitlines()) == 3


def test_what_cannot_be_cleaned_is_a_sentence(folder, capsys):
    for arguments, words in (
            (["rows.jsonl", "--min-side=500"], "No pair of rows.jsonl passes all rules"),
            (["gone.json"], "gone.json cannot be read"),
            (["rows.jsonl", "--itc=0.1"], "the rows have no 'itc'")):
        name, *rest = arguments
        code = main(["data", "clean", str(folder / name), "--out", str(folder / "c.json"), *rest])
        assert code == 2 and words in capsys.readouterr().err.replace(f"{folder}/", "")
        assert not (folder / "c.json").exists()
