"""A task, a source with a field of its own and an evaluator from outside: nothing here knows them.

They are in tests/outside; docs/extending.md builds them step by step. Real processes, as a person
would run them.
"""

import json
from pathlib import Path
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = ROOT / "tests" / "outside"
CONFIG = "tests/outside/config.py"


@pytest.fixture(scope="module")
def stopped_and_resumed(albef, tmp_path_factory):
    """A run that SIGTERM stops in the middle and the same command finishes; its outputs."""
    workdir = tmp_path_factory.mktemp("outside") / "run"
    options = ("--config", CONFIG, "--workdir", workdir)
    process = albef.start("train", *options)
    for line in process.stderr:
        if line.startswith("step 120/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 0, rest
    stopped = int(re.search(r"finished (\d+) of 300 steps", rest).group(1))
    assert 120 <= stopped < 300
    resumed = albef.run("train", *options)
    assert resumed.returncode == 0, resumed.stderr
    return workdir, stopped, resumed.stderr


def test_it_trains_and_goes_on_after_a_signal(stopped_and_resumed):
    workdir, stopped, said = stopped_and_resumed
    assert f"resuming at step {stopped}" in said and "accuracy" in said
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert {*range(20, 301, 20)} <= losses.keys() and len(losses) <= 16
    measured = {row["step"]: row["dev/kind"] for row in rows if "dev/kind" in row}
    assert list(measured) == [100, 200, 300]
    assert measured[300] > 70 > 3 * 100 / 9  # chance is 11
    assert (workdir / "checkpoints" / str(max(measured, key=measured.get))).is_dir()  # the best


@pytest.mark.slow
def test_the_curve_is_that_of_an_unstopped_run(albef, stopped_and_resumed, tmp_path):
    workdir, *_ = stopped_and_resumed
    assert albef.run("train", "--config", CONFIG, "--workdir", tmp_path / "run").returncode == 0
    ours, other = (
        {row["step"]: row.get("loss") for row in map(
            json.loads, (folder / "metrics.jsonl").read_text().splitlines())
         if "loss" in row and row["step"] % 20 == 0} for folder in (workdir, tmp_path / "run"))
    assert ours == other


@pytest.mark.slow
def test_evaluate_report_bench_and_plan(albef, stopped_and_resumed):
    workdir, *_ = stopped_and_resumed
    done = albef.run("evaluate", workdir)
    assert done.returncode == 0 and "dev at step 300 (90 sounds of 9 kinds)" in done.stdout
    values = json.loads((workdir / "results" / "dev.json").read_text())["values"]
    assert values["kind"] > 70 and values["chance"] == pytest.approx(100 / 9)

    page = albef.run("report", workdir)
    assert page.returncode == 0, page.stderr
    html = (workdir / "report.html").read_text()
    for text in ("Contrastive loss", "all texts of the group alike", "right pitch and motion",
                 "Held-out sounds, %"):
        assert text in html, text

    bench = albef.run("bench", "--config", CONFIG, "--steps", "3")
    assert bench.returncode == 0 and "samples/s" in bench.stdout, bench.stderr
    plan = albef.run("plan", "--config", CONFIG, "--target", "cpu")
    assert plan.returncode == 0 and "temporaries" in plan.stdout, plan.stderr


def test_export_and_load(albef, stopped_and_resumed, tmp_path):
    """In a process that has not seen the file before; the numbers are those of the evaluator."""
    workdir, *_ = stopped_and_resumed
    out = tmp_path / "export"
    done = albef.run("export", workdir, "--format", "safetensors", "--out", out)
    assert done.returncode == 0, done.stderr
    code = f"""
import albef_jax, numpy as np, sys
for path in {str(workdir)!r}, {str(out)!r}:
    model = albef_jax.load(path)
    from albef_jax.data.sources import make_source
    tones = make_source(dict(kind={str(OUTSIDE / "sounds.py")!r} + ":Tones", size=9, seed=1))
    sounds = model.predict("encode_sound", sound=[tones.sound(i) for i in range(9)])
    texts = model.predict("encode_text", text=[tones.text(i) for i in range(9)])
    print((sounds @ texts.T).argmax(1).tolist())
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            timeout=300, **{k: v for k, v in albef.options.items() if k != "text"})
    assert loaded.returncode == 0, loaded.stderr
    one, other = map(json.loads, loaded.stdout.splitlines())
    assert one == other and np.mean(np.array(one) == np.arange(9)) > 0.6


@pytest.mark.parametrize("override, sentence", [
    ("--config.data.sound_length=0", "config.data.sound_length is 0"),
    ("--config.model.depth=3", "config.model.depth does not exist; the keys there are cls_id"),
    ("--config.checkpoint.best_metric=dev/kinds", "evals.dev has no value 'kinds'; it has kind, "
                                                  "chance"),
    ("--config.data.source.kind=synthetic", "has no field 'sound'"),
])
def test_mistakes_are_sentences(albef, tmp_path, override, sentence):
    done = albef.run("train", "--config", CONFIG, "--workdir", tmp_path / "run", override)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_guide_is_this_code():
    """docs/extending.md shows the files piece by piece."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(),
                        re.DOTALL | re.MULTILINE)
    shown = "\n".join(blocks)
    for name in ("sounds.py", "config.py"):
        code = (OUTSIDE / name).read_text()
        body = code[code.index('"""', 3) + 4:]  # without the docstring, which has its own words
        for line in filter(str.strip, body.splitlines()):
            assert line in shown, f"{name}: {line}"
