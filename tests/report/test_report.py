"""The page about a run: what is on it, what its examples are, and what it does without."""

import html.parser
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from albef_jax import cli
from albef_jax.config import load_config, to_json
from albef_jax.core.build import build
from albef_jax.errors import UserError
from albef_jax.evaluators import KINDS, evaluator_class
from albef_jax.evaluators.base import Chart, Evaluator, Forward
from albef_jax.parallel.mesh import make_mesh
from albef_jax.report import classes_of, of_this_process, panels, report, report_at_end, write_page
from albef_jax.report.charts import line_chart, running_mean, thin
from albef_jax.report.examples import data_uri, embedded, find_examples
from albef_jax.report.history import curve, latest_values, read_curves, read_history
from albef_jax.run.workdir import read_config
from albef_jax.tasks.base import Shown
from albef_jax.train import train

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "tiny.py"
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


def test_everything_is_on_the_page(run):
    page = Page(run / "report.html")
    assert list(page.text) == SECTIONS
    assert "my &lt;run&gt;" in page.source and "my <run>" not in page.source
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    measured = {name: value for row in rows for name, value in row.items() if "/" in name}
    assert measured
    for name, value in measured.items():
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
        # The page itself takes time, which the run counts when it is made.
        one, other = (page.text[section].partition("Where the wall time went")[0]
                      for page in (again, before))
        assert one == other


def test_thumbnail_is_small_and_keeps_its_shape():
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)
    assert data_uri(Image.fromarray(noise)).startswith("data:image/jpeg;base64,")
    assert len(data_uri(Image.fromarray(noise))) < 40_000
    assert data_uri(Image.new("RGB", (64, 64))).startswith("data:image/png;base64,")


def test_pictures_are_embedded_wherever_they_are():
    picture = Image.new("RGB", (64, 64))
    assert embedded({"rows": [{"pictures": (picture,), "text": "a", "none": None}]}) == {
        "rows": [{"pictures": [data_uri(picture)], "text": "a", "none": None}]}


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
    (["checkpoints"], "has no checkpoints", ["numbers", "missing", "curves", "speed"]),
    (["tokenizer"], "has no folder tokenizer", ["numbers", "missing", "curves", "speed"]),
    (["metrics.jsonl"], "metrics.jsonl has no logged step", SECTIONS),
])
def test_what_is_missing_is_said_in_its_place(run, tmp_path, gone, sentence, sections):
    page = Page(report(damaged(run, tmp_path, *gone)))
    assert sentence in " ".join(page.text.values())
    assert set(sections) <= set(page.text)


def test_held_out_data_that_is_gone_and_runs_without_evaluators(run, tmp_path):
    """What cannot be made is said; the others show what they have."""
    workdir = damaged(run, tmp_path)
    config = read_config(workdir).unlock()
    config.evals.dev.source = dict(kind="json", files=("gone.json",))
    (workdir / "config.json").write_text(to_json(config))
    page = Page(report(workdir))
    assert "gone.json" in page.text["missing"] and "ITC" in page.text["curves"]
    assert "Image to text, R@K in %" in page.text["curves"]
    assert "hidden:" in page.text["words"] and "pictures" not in page.text
    config.evals = {}
    (workdir / "config.json").write_text(to_json(config))
    page = Page(report(workdir))
    assert "config.evals has no evaluator" in page.text["missing"]
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
    """A folder stands where the page should go."""
    workdir = damaged(run, tmp_path, "report.html")
    (workdir / "report.html").mkdir()
    config = read_config(workdir).unlock()
    config.evals = {}
    report_at_end(workdir, config, {}, None, {})
    error = capsys.readouterr().err
    assert error.startswith("no report was written (The report ") and error.count("\n") == 1
    assert f"`albef report {workdir}` tries again" in error


def test_a_run_without_evaluators_ends_with_a_page(run, tmp_path, capsys):
    workdir = damaged(run, tmp_path, "report.html")
    config = read_config(workdir).unlock()
    config.evals = {}
    report_at_end(workdir, config, {}, None, {})
    assert capsys.readouterr().err == f"the report is {workdir / 'report.html'}\n"
    assert "Contrastive loss (ITC)" in Page(workdir / "report.html").text["curves"]


class Stranger(Evaluator):
    """Has nothing for the page."""

    def run(self, forward):
        yield "median_rank", 3.0


class Talkative(Evaluator):
    """Has everything for the page, in its own words."""

    labels = {"margin": "margin of the right one"}
    headline = {"margin": "margin"}
    charts = (Chart("Margin of {name}", {"margin": "margin"}, blind="chance", note="dashed: luck"),
              Chart("Matching and masked words, %", {"hits": "hits"}, colour=3))

    def beneath(self, name, values):
        return [f"luck: {values['chance']}"]

    def examples(self, forward, teacher):
        assert forward.params and teacher is None
        return {"rows": [{"pictures": [], "text": "a sound", "choices": [
            {"text": "a bark", "share": 0.75, "right": False}], "truth": "a meow", "hit": False}]}


class Unwilling(Stranger):
    """Has nothing to show, and says why."""

    def examples(self, forward, teacher):
        raise UserError("The sounds are too loud to be shown.")


@pytest.mark.parametrize("kind, found, absent", [
    (Stranger, ["median rank", "3.0", "no evaluator whose held-out examples"], ["a bark"]),
    (Unwilling, ["median rank", "too loud to be shown"], ["no evaluator whose"]),
    (Talkative, ["margin of the right one", "luck: -2.0", "a bark", "answered wrongly",
                 "Margin of held", "dashed: luck", "hits"], ["no evaluator whose"])])
def test_evaluators_of_strangers(tmp_path, kind, found, absent):
    config = load_config(CONFIG)
    config.evals.held = dict(kind=f"{__name__}:{kind.__name__}", source=HELD_OUT)
    evaluators = {"held": kind(HELD_OUT, {}, config, None)}
    write_log(tmp_path / "metrics.jsonl", {"step": 3, "held/median_rank": 3.0} if kind is not
              Talkative else {"step": 3, "held/margin": -1.5, "held/chance": -2.0, "held/hits": 7})
    forward = Forward({"weight": np.ones(3)}, {}, make_mesh())
    page = write_page(epath.Path(tmp_path), config, evaluators, forward, {}).read_text()
    assert [text for text in found if text not in page] == []
    assert [text for text in absent if text in page] == []


def test_an_evaluator_whose_class_is_gone_keeps_its_numbers(tmp_path):
    config = load_config(CONFIG)
    config.evals.held = dict(kind="gone.py:Gone", source=HELD_OUT)
    write_log(tmp_path / "metrics.jsonl", {"step": 3, "held/some_value": 12.34})
    page = write_page(epath.Path(tmp_path), config, {}, None, None, ["gone.py is gone."])
    assert "some value" in page.read_text() and "12.3" in page.read_text()


def test_the_order_of_the_page_is_not_that_of_names():
    """Names are sorted; the page starts with retrieval, and of a section the later one counts."""
    config = load_config(CONFIG)
    kinds = [kind for kind in KINDS if kind != "pair_retrieval"]  # its charts are as retrieval's
    names = {kind: f"e{number}" for number, kind in enumerate(reversed(kinds))}
    for kind, name in names.items():
        config.evals[name] = dict(kind=kind, source=HELD_OUT)
    config.evals.a = dict(kind=f"{__name__}:Stranger", source=HELD_OUT)
    classes = classes_of(config, {})
    assert [*classes] == [*reversed(names.values()), "a"]
    assert [*classes.values()] == [*map(evaluator_class, kinds), Stranger]
    rows = [(1, {f"{names['retrieval']}/{way}_r1": 10.0
                 for way in ("i2t", "t2i", "itc_i2t", "itc_t2i")} | {
        f"{names['matching']}/itm_accuracy_hard": 60.0, f"{names['masked']}/mlm_top1": 30.0,
        f"{names['masked']}/mlm_top5": 40.0, f"{names['classification']}/accuracy": 50.0,
        f"{names['classification']}/majority": 35.0})]
    drawn = panels.evaluation_panels(rows, classes)
    assert [panel["title"] for panel in drawn] == [
        "Image to text, R@K in %", "Text to image, R@K in %", "Matching and masked words, %",
        f"Held-out {names['classification']}, %"]
    assert [(entry["label"], entry["colour"]) for entry in drawn[2]["legend"]] == [
        ("hard negatives", "var(--series-1)"), ("words, top 1", "var(--series-3)"),
        ("top 5", "var(--series-4)")]
    assert [line["dashed"] for line in drawn[0]["lines"]] == [True, False]
    assert drawn[3]["options"]["reference"] == 35.0 and drawn[2]["options"]["reference"] is None
    assert drawn[3]["note"] and not drawn[2]["note"]
    measured = panels.tables(rows, epath.Path("absent"), classes)
    assert [tile["label"] for tile in panels.headline(measured, classes, {})] == [
        "text to image, R@1", "image to text, R@1", "ITM, hard negatives", "masked words right",
        "held-out accuracy"]


def test_of_one_kind_the_first_is_drawn_and_asked(tmp_path):
    class Counting(Evaluator):
        charts = (Chart("One", {"value": "value"}), Chart("Each {name}", {"value": "value"}))
        headline = {"value": "value"}
        asked = []

        def examples(self, forward, teacher):
            self.asked.append(self.description)
            if self.description == "first":
                raise UserError("nothing here")
            return {"rows": []}

    evaluators = [Counting(HELD_OUT, {}, load_config(CONFIG), None) for _ in range(3)]
    for evaluator, evaluator.description in zip(evaluators, ("first", "second", "third")):
        pass
    found = find_examples(evaluators, Forward({}, {}, None), None)
    assert found == {"rows": [], "missing": ["nothing here"]}
    assert Counting.asked == ["first", "second"]
    rows = [(1, {"a/value": 1.0, "b/value": 2.0})]
    classes = {"a": Counting, "b": Counting}
    drawn = panels.evaluation_panels(rows, classes)
    assert [(p["title"], len(p["lines"])) for p in drawn] == [("One", 1), ("Each a", 1),
                                                             ("Each b", 1)]
    assert drawn[0]["legend"][0]["last"] == 1.0
    measured = panels.tables(rows, epath.Path(tmp_path), classes)
    assert [tile["value"] for tile in panels.headline(measured, classes, {})] == [1.0]


def test_metrics_of_a_task_are_drawn_as_it_says():
    rows = [(step, {"loss": 2.0, "hidden": 1.0, "hits": 0.25}) for step in range(3)]
    drawn = panels.loss_panels(rows, [
        Shown("loss", "loss", "Loss", blind=1.5, note="dashed: blind"), Shown("hidden", "hidden"),
        Shown("hits", "hits", "Hits, %", share=True, blind=0.1), Shown("absent", "no", "Absent")])
    assert [(panel["title"], panel["note"]) for panel in drawn] == [
        ("Loss", "dashed: blind"), ("Hits, %", "")]
    assert drawn[0]["options"] == {"smooth": True, "reference": 1.5}
    assert drawn[1]["legend"][0]["last"] == 25.0
    assert drawn[1]["options"] == {"smooth": True, "reference": 10.0, "floor": 0, "top": 100}


def test_curves_of_others_are_drawn_under_those_of_the_run(tmp_path):
    """Of a file of several, where they have the scalar; in one colour that is not the run's."""
    file = tmp_path / "known.csv"
    file.write_text("run,step,itm,dev/value\nb,20,0.2,\na,10,0.5,\nb,10,0.3,7\n")
    others = read_curves(epath.Path(file))
    assert others == {"b": [(10, {"itm": 0.3, "dev/value": 7.0}), (20, {"itm": 0.2})],
                      "a": [(10, {"itm": 0.5})]}
    (panel,) = panels.loss_panels([(5, {"itm": 0.6, "mlm": 2.0})], [
        Shown("itm", "itm", "ITM"), Shown("itc", "itc", "ITC")], (), others)
    assert [(line["label"], line["colour"], line["last"]) for line in panel["legend"]] == [
        ("b", "var(--muted)", 0.2), ("a", "var(--muted)", 0.5), ("itm", "var(--series-1)", 0.6)]
    assert "var(--muted)" in panel["svg"]

    class One(Evaluator):
        charts = (Chart("One", {"value": "value"}),)

    (panel,) = panels.evaluation_panels([(5, {"dev/value": 1.0})], {"dev": One}, (), others)
    assert [line["label"] for line in panel["legend"]] == ["b", "value"]
    assert panels.evaluation_panels([], {"dev": One}, (), others) == []  # nothing to compare


@pytest.mark.parametrize("text, sentence", [
    (None, "cannot be read .No such file"), ("", "holds no curves"), ("step,itm\n", "holds no"),
    ("itm\n0.5\n", "is no file of curves .line 2"), ("step,itm\n1,0.5\n2,low\n", ".*line 3"),
    ("step,itm\n1,0.5,7\n", "is no file of curves .line 2")])
def test_a_file_that_holds_no_curves_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "curves.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=f"--against .*curves.csv {sentence}"):
        read_curves(epath.Path(file))


def test_a_folder_without_a_log_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no metrics.jsonl with rows"):
        read_curves(epath.Path(tmp_path))


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "curves").glob("*.csv")), ids=str)
def test_the_curves_of_this_project_can_be_drawn(file):
    for rows in read_curves(epath.Path(file)).values():
        assert [*curve(rows, "itm")[1]] and rows == sorted(rows, key=lambda row: row[0])


def test_values_below_zero_have_no_floor():
    class Losing(Evaluator):
        charts = (Chart("Likelihood", {"value": "value"}),)

    (panel,) = panels.evaluation_panels([(1, {"a/value": -3.0})], {"a": Losing})
    assert panel["options"]["floor"] is None


def test_the_first_process_takes_what_was_encoded_along(run):
    """On its own devices, with the same numbers, and nothing is encoded again."""
    parts = build(read_config(run), make_mesh())
    params = parts.create_state().params
    forward = Forward(params, parts.task.predict_fns(), parts.mesh)
    rows = jax.device_put(np.arange(6.0).reshape(3, 2), forward.mesh.devices.flat[0])
    forward.once("encoded", lambda: (rows, np.arange(3)))
    local, teacher = of_this_process(forward, parts.task.teacher_of(params))
    assert local is not forward and local.functions is forward.functions
    assert {*local.mesh.devices.flat} == {*jax.local_devices()}
    kept_rows, kept_feats = local.once("encoded", lambda: pytest.fail("encoded again"))
    np.testing.assert_array_equal(kept_rows, rows)
    np.testing.assert_array_equal(kept_feats, np.arange(3))
    assert kept_rows.sharding.mesh == local.mesh and kept_rows.is_fully_replicated
    for ours, theirs in zip(jax.tree.leaves((params, parts.task.teacher_of(params))),
                            jax.tree.leaves((local.params, teacher)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_processes_make_the_page_of_one(tmp_path):
    """With what both have encoded: it is the page that `albef report` makes from the checkpoint."""
    workdir = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "launch/local_processes.py", "--processes", "2", "--devices-per-process",
         "2", "--", sys.executable, "-c", "import sys; from albef_jax.cli import main; "
         "sys.exit(main())", "train", "--config", "tests/tiny.py:learn", "--config.steps=4",
         "--process-timeout", "60", "--workdir", str(workdir)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("the report is ") == 1 and "no report was written" not in done.stdout
    at_end = Page(workdir / "report.html")
    again = Page(report(workdir))
    assert again.text.keys() == at_end.text.keys()
    for section in {"numbers", "curves", "words", "pictures", "teacher"}:
        assert again.text[section] == at_end.text[section]
