"""The page about a run: what is on it, what its examples are, and what it does without."""

import html.parser
import json
from pathlib import Path
import re
import shlex
import shutil

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from albef_jax import cli
from albef_jax.config import load_config, to_json
from albef_jax.data.sources import make_source
from albef_jax.data.text import clean_caption, train_tokenizer
from albef_jax.evaluators.masked import draw_masked
from albef_jax.report import report, report_at_end
from albef_jax.report.charts import line_chart, running_mean, thin
from albef_jax.report.examples import Examples, best, data_uri, spread
from albef_jax.report.history import curve, latest_values, read_history
from albef_jax.parallel.mesh import make_mesh
from albef_jax.core.state import TrainState
from albef_jax.tasks import make_task
from albef_jax.train import train
from albef_jax.run.workdir import read_config

CONFIG = Path(__file__).parents[1] / "tiny.py"
HELD_OUT = {"kind": "synthetic", "size": 24, "image_size": 32}
SECTIONS = ["numbers", "pictures", "captions", "words", "teacher", "heat", "curves", "speed",
            "config"]


class Page(html.parser.HTMLParser):
    """What a page refers to, and its text by section; fails on tags that do not match."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.references, self.text, self.tags, self._open, self._section = [], {}, [], [], None
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "href", "xlink:href", "data")
                            if name in attributes]
        if tag == "section":
            self._section = attributes["id"]
            self.text[self._section] = ""
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self._section = None if tag == "section" else self._section

    def handle_data(self, data):
        if self._section:
            self.text[self._section] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of six steps with three evaluators: its work directory."""
    workdir = epath.Path(tmp_path_factory.mktemp("report") / "my <run>")
    config = load_config(f"{CONFIG}:learn", ["--config.steps=6", "--config.log_every=1"])
    config.evals.pairs = dict(kind="matching", source=HELD_OUT, batch_size=8, every=3)
    config.evals.dev.every = 3
    assert train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def model():
    """Random models and a teacher of other weights, with `Examples` of them."""
    config = load_config(f"{CONFIG}:learn")
    source = make_source(HELD_OUT)
    captions = [clean_caption(c, 30) for i in range(len(source)) for c in source.captions(i)]
    tokenizer = train_tokenizer(captions, 200)
    config.model.update(vocab_size=tokenizer.vocab_size, cls_id=tokenizer.cls_id,
                        mask_id=tokenizer.mask_id)
    task = make_task(config)
    # Random weights have nearly equal [CLS] states; larger ones tell inputs apart.
    params, other = (jax.tree.map(lambda x: 3 * x, jax.jit(task.init)(jax.random.key(seed)))
                     for seed in (0, 1))
    params["temp"] = np.float32(0.07)
    examples = Examples(config.evals.dev, config, tokenizer, params, task.teacher_of(other),
                        task.predict_fns(), make_mesh())
    functions = {name: jax.jit(function) for name, function in task.predict_fns().items()}
    return examples, functions, params, {**params, **task.teacher_of(other)}, tokenizer, source


def test_everything_is_on_the_page(run):
    page = Page(run / "report.html")
    assert list(page.text) == SECTIONS
    assert "my &lt;run&gt;" in page.source and "my <run>" not in page.source
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name, value in last.items():
        if "/" in name:
            assert f"{value:.1f}" in page.text["numbers"], name
    assert sum(tag == "svg" for tag, _ in page.tags) == 9
    for title in ("ITC", "ITM", "MLM", "Image to text", "Text to image", "Matching"):
        assert title in page.text["curves"]
    assert "Waiting for data" in page.text["speed"] and "Learning rate" in page.text["speed"]
    assert "guessing: 4.2%" in page.text["numbers"]  # one of 24
    assert page.text["heat"].count("all, match") == 5 and len(page.source) < 1_000_000
    assert "embed_dim16" in page.text["config"] and jax.__version__ in page.text["config"]
    assert f"albef report {shlex.quote(str(run))}" in page.text["config"]
    assert "6 of 6 steps" in page.source and "unfinished" not in page.source
    assert not (run / "report.html.unfinished").exists()


def test_one_file_without_network_or_scripts(run):
    page = Page(run / "report.html")
    assert (run / "report.html").stat().length < 5e6
    assert all(reference.startswith(("data:", "#")) for reference in page.references)
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page.source)
    assert not re.search(r"https?:|@import|<script", outside)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page.source))
    assert not re.search(r"#0000[ef]\d", page.source), "a colour without a variable"
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert {r[1:] for r in page.references if r.startswith("#")} <= anchors


def test_the_command_makes_the_same_examples_as_the_end_of_training(run, tmp_path, capsys):
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    assert cli.main(["report", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy / 'report.html'}\n"
    again, before = Page(copy / "report.html"), Page(run / "report.html")
    for section in set(SECTIONS) - {"config"}:
        assert again.text[section] == before.text[section]


def assert_best(found, scores, shown, chosen_by=None):
    """`found` are the best by `scores`, best first; or all of the best 4 by `chosen_by`."""
    rows = [row for row, _ in found]
    assert len(set(rows)) == len(rows) == shown
    np.testing.assert_allclose([score for _, score in found], scores[rows], rtol=1e-3, atol=1e-5)
    assert sorted((score for _, score in found), reverse=True) == [score for _, score in found]
    by = scores if chosen_by is None else chosen_by
    # Nearly equal ones may come in another order on another path through the same model.
    assert by[rows].min() >= np.sort(by)[-shown] - 1e-4


def test_queries_are_answered_as_by_a_plain_loop(model):
    """Similarities choose 4 candidates, the match logit orders them, own ones are marked."""
    examples, functions, params, _, _, source = model
    data = examples.data
    assert len(set(data.texts)) == len(data.texts) == 48
    thumbnails = {data_uri(Image.fromarray(source.image(i))): i for i in range(24)}
    pictures = np.stack([source.image(i) for i in range(24)])
    image_embeds, image_feats = functions["encode_image"](params, pictures)
    text_embeds, text_feats = functions["encode_text"](params, data.text_ids, data.text_mask)
    sims = np.asarray(image_feats @ text_feats.T)

    def logits_of(image):
        images = np.broadcast_to(image_embeds[image], (48, *image_embeds[image].shape))
        logits = functions["match"](params, images, text_embeds, data.text_mask)
        return np.asarray(logits[:, 1])

    table = np.stack([logits_of(image) for image in range(24)])
    text_queries, image_queries = examples.queries()
    rows = spread(24, 12)
    for query, image in zip(text_queries, rows[::2], strict=True):
        assert query["caption"] == data.texts[2 * image]
        found = [thumbnails[item["picture"]] for item in query["found"]]
        assert_best([*zip(found, (item["score"] for item in query["found"]))],
                    table[:, 2 * image], 4, sims[:, 2 * image])
        assert [item["right"] for item in query["found"]] == [row == image for row in found]
        assert query["place"] == (found.index(image) + 1 if image in found else None)
        assert (query["answer"] is None) == (image in found)
        assert image in found or thumbnails[query["answer"]] == image
    for query, image in zip(image_queries, rows[1::2], strict=True):
        assert thumbnails[query["picture"]] == image
        found = [data.texts.index(item["text"]) for item in query["found"]]
        assert_best([*zip(found, (item["score"] for item in query["found"]))],
                    table[image], 4, sims[image])
        right = [text // 2 == image for text in found]
        assert [item["right"] for item in query["found"]] == right
        assert query["place"] == (right.index(True) + 1 if any(right) else None)
        assert any(right) or query["answer"] == data.texts[2 * image]
    marks = [item["right"] for query in text_queries + image_queries for item in query["found"]]
    assert any(marks) and not all(marks)


def test_words_are_the_likeliest_of_model_and_teacher(model):
    examples, functions, params, teacher, tokenizer, source = model
    data = examples.data
    thumbnails = {data_uri(Image.fromarray(source.image(i))): i for i in range(len(source))}
    masked = draw_masked(data.text_ids, tokenizer.special_ids, np.random.default_rng(0))
    sides = {"model": params, "teacher": teacher}
    for item in examples.words():
        image = thumbnails[item["picture"]]
        caption = "".join(" " * p["space"] + p["text"] for p in item["pieces"]).strip()
        text = next(t for t in np.flatnonzero(data.text_image == image)
                    if data.texts[t] == caption)
        hidden = np.flatnonzero(masked[text])
        assert [p["text"] for p in item["pieces"] if p["masked"]] == [
            tokenizer.decode([data.text_ids[text, at]]).removeprefix("##") for at in hidden]
        ids = np.where(masked[text], tokenizer.mask_id, data.text_ids[text])
        for side, weights in sides.items():
            embeds, _ = functions["encode_image"](weights, source.image(image)[None])
            logits = functions["mlm_logits"](weights, embeds, ids[None], data.text_mask[[text]])
            shares = np.asarray(jax.nn.softmax(logits[0]))
            for guess, at in zip(item["guesses"], hidden, strict=True):
                top = np.argsort(-shares[at])[:5]
                np.testing.assert_allclose([g["share"] for g in guess[side]], shares[at][top],
                                           rtol=1e-2, atol=1e-5)
                assert [g["right"] for g in guess[side]] == list(top == data.text_ids[text, at])
    assert item["guesses"][0]["model"] != item["guesses"][0]["teacher"]


def test_only_the_chosen_words_are_hidden(model):
    chosen = ("red", "green", "blue")
    shown = model[0].words(chosen)
    hidden = [piece["text"] for item in shown for piece in item["pieces"] if piece["masked"]]
    assert shown and set(hidden) <= set(chosen)


def test_pseudo_targets_are_the_teachers_softmax(model):
    examples, functions, params, teacher, _, source = model
    data = examples.data
    pictures = np.stack([source.image(i) for i in range(len(source))])
    _, images = functions["encode_image"](teacher, pictures)
    _, texts = functions["encode_text"](teacher, data.text_ids, data.text_mask)
    shares = np.asarray(jax.nn.softmax(images @ texts.T / 0.07))
    for item, image in zip(examples.pseudo_targets(), spread(24, 6), strict=True):
        assert item["caption"] == data.texts[2 * image]
        found = [data.texts.index(one["text"]) for one in item["found"]]
        assert_best([*zip(found, (one["share"] for one in item["found"]))], shares[image], 5)
        assert [one["right"] for one in item["found"]] == [t // 2 == image for t in found]


def test_best_follows_the_order_of_rank_and_spread_stays_inside():
    assert list(best(np.array([1.0, np.nan, 3.0, 3.0, 2.0, 0.0]))) == [3, 2, 4, 0, 5]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 6) == [0, 1] and spread(1, 6) == [0] and spread(0, 6) == []


def test_thumbnail_is_small_and_keeps_its_shape():
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    assert data_uri(Image.fromarray(noise)).startswith("data:image/jpeg;base64,")
    assert len(data_uri(Image.fromarray(noise))) < 40_000
    assert data_uri(Image.new("RGB", (64, 64))).startswith("data:image/png;base64,")


def write_log(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n"
                            for row in rows))
    return path


def test_history_of_resumed_runs_has_every_step_once(tmp_path):
    """Steps that are logged again count as they were the last time; later ones are gone."""
    rows = read_history(write_log(
        epath.Path(tmp_path) / "metrics.jsonl", {"step": 1, "itc": 9.0}, {"step": 2, "itc": 8.0},
        {"step": 2, "dev/i2t_r1": 10.0}, {"step": 5, "itc": 7.0}, '{"step": 6\n',
        {"step": 2, "itc": 6.0}, {"step": 4, "itc": None}, '{"step": 6, "it'))
    steps, values = curve(rows, "itc")
    np.testing.assert_array_equal(steps, [1, 2, 4])
    np.testing.assert_array_equal(values, [9.0, 6.0, np.nan])
    assert latest_values(rows, tmp_path, "dev") == (2, {"i2t_r1": 10.0})
    assert read_history(epath.Path(tmp_path) / "absent") == []


def test_newer_results_of_evaluate_come_first(tmp_path):
    rows = [(5, {"dev/r_mean": 1.0}), (9, {"itc": 1.0})]
    (tmp_path / "results").mkdir()
    result = tmp_path / "results" / "dev.json"
    for step, expected in ((4, 1.0), (5, 1.0), (8, 2.0)):
        result.write_text(json.dumps({"step": step, "values": {"r_mean": 2.0}}))
        assert latest_values(rows, tmp_path, "dev")[1] == {"r_mean": expected}
    assert latest_values(rows, tmp_path, "other") == (None, {})


def test_long_curves_are_thinned_and_gaps_stay():
    steps, values = thin(np.arange(4000), np.arange(4000.0))
    assert len(steps) == 400 and steps[-1] == 3999 and values[0] == 4.5
    values = np.array([1.0, np.nan, 3.0])
    np.testing.assert_array_equal(running_mean(values), values)
    np.testing.assert_allclose(running_mean(np.arange(100.0))[3:97], np.arange(3.0, 97))
    svg = line_chart([{"steps": np.arange(5), "values": np.array([1, 2, np.nan, 4, 5]),
                       "colour": 2}])
    assert svg.startswith("<svg viewBox") and "stroke: var(--series-3)" in svg
    line = next(d for d in re.findall(r'd="([^"]*)"', svg) if "z" not in d and d.count("L") >= 2)
    assert line.count("M") == 2, "the gap is drawn over"


def damaged(run, tmp_path, *gone):
    """A copy of a run without some of its parts."""
    copy = epath.Path(tmp_path / "copy")
    shutil.copytree(run, copy)
    for name in gone:
        remove = shutil.rmtree if (copy / name).is_dir() else Path.unlink
        remove(copy / name)
    return copy


@pytest.mark.parametrize("gone, sentence, sections", [
    (["checkpoints"], "has no checkpoints", ["numbers", "pictures", "curves", "speed"]),
    (["tokenizer"], "has no folder tokenizer", ["numbers", "pictures", "curves", "speed"]),
    (["metrics.jsonl"], "metrics.jsonl has no logged step", SECTIONS),
])
def test_what_is_missing_is_said_in_its_place(run, tmp_path, gone, sentence, sections):
    page = Page(report(damaged(run, tmp_path, *gone)))
    assert sentence in " ".join(page.text.values())
    assert set(sections) <= set(page.text)


def test_held_out_data_that_is_gone_and_runs_without_evaluators(run, tmp_path):
    workdir = damaged(run, tmp_path)
    config = read_config(workdir).unlock()
    config.evals.dev.source = dict(kind="json", files=("gone.json",))
    (workdir / "config.json").write_text(to_json(config))
    page = Page(report(workdir))
    assert "gone.json" in page.text["pictures"] and "ITC" in page.text["curves"]
    config.evals = {}
    (workdir / "config.json").write_text(to_json(config))
    page = Page(report(workdir))
    assert "config.evals has no block of kind" in page.text["pictures"]
    assert "config.evals is empty" in page.text["numbers"]


def test_an_interrupted_run_and_values_that_are_not_numbers(run, tmp_path):
    workdir = damaged(run, tmp_path, "checkpoints")
    write_log(workdir / "metrics.jsonl", {"step": 1, "itc": 2.0, "step_time": 1.0},
              {"step": 2, "itc": None, "dev/i2t_r1": None, "dev/itc_i2t_r1": 5.0})
    page = Page(report(workdir))
    assert "2 of 6 steps, unfinished" in page.source and "–" in page.text["numbers"]


def test_no_run_is_one_sentence(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failing_report_does_not_fail_the_run(run, tmp_path, capsys):
    """A folder stands where the page should go; the held-out data is unusable in a new way."""
    workdir = damaged(run, tmp_path, "report.html")
    (workdir / "report.html").mkdir()
    config = read_config(workdir).unlock()
    config.evals = {}
    report_at_end(workdir, config, None, TrainState(0, {}, {}, {}, {}), {}, make_mesh())
    error = capsys.readouterr().err
    assert error.startswith("no report was written (") and error.count("\n") == 1
    assert f"`albef report {workdir}` tries again" in error
