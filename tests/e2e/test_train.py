"""The commands: a tiny model learns, is evaluated and measured; runs that cannot go on say why."""

import json
import math
import re

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.data.sources import make_source


@pytest.fixture(scope="module")
def learned(albef, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("learned") / "run"
    done = albef.train(workdir, config="tests/tiny.py:learn")
    assert done.returncode == 0, done.stderr
    return workdir


def test_every_loss_falls(learned):
    """16 pairs seen 200 times: from 3.6, 0.65, 3.7 to at most 1.5, 0.32, 1.5 with any seed.

    0.637 is ITM's loss for knowing nothing but the share of negatives.
    """
    lines = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    losses = {name: [line[name] for line in lines if name in line]
              for name in ("itc", "itm", "mlm", "loss", "mi_bound")}
    first, last = ({name: np.mean(values[part]) for name, values in losses.items()}
                   for part in (slice(3), slice(-3, None)))
    assert last["itc"] < 0.7 * first["itc"]
    assert last["itm"] < 0.5 < 0.6 < first["itm"]
    assert last["mlm"] < 0.6 * first["mlm"]
    assert last["loss"] < first["loss"]
    assert first["mi_bound"] < 0.5 < last["mi_bound"] < math.log(16 + 16)
    assert all(np.isfinite(values).all() for values in losses.values())


def test_evaluation_at_the_end_and_afterwards(albef, learned):
    """`albef evaluate` finds what training logged, prints it and writes it down."""
    rows = map(json.loads, (learned / "metrics.jsonl").read_text().splitlines())
    last = [row for row in rows if "dev/i2t_r1" in row][-1]
    done = albef.run("evaluate", learned)
    assert done.returncode == 0, done.stderr
    for name in ("dev", "words"):
        result = json.loads((learned / "results" / f"{name}.json").read_text())
        assert result["step"] == 200
        for key, value in result["values"].items():
            assert last[f"{name}/{key}"] == pytest.approx(value, rel=1e-6)
            row = re.sub(r"_r\d+$", "", key)  # recalls at several depths share one
            assert re.search(rf"^ +{row} .*\b{value:.2f}\b", done.stdout, re.MULTILINE)
    # Chance is one in 24; seeds give 50 to 75, 42 to 50 after re-ranking, and 63 to 80 of the words.
    assert last["dev/itc_i2t_r1"] > 35 and last["dev/i2t_r1"] > 25 and last["words/mlm_top1"] > 50


def test_the_learned_model_finds_what_it_saw(learned):
    """Each of the 16 scenes by its caption: the first hit is right far above chance, one in 16."""
    scenes = make_source(dict(kind="synthetic", size=16, image_size=32))
    model = albef_jax.load(learned)
    index = model.index_images([scenes.image(i) for i in range(16)])
    first = [model.search(index, text=scenes.text(i)[0], k=1)[0].row for i in range(16)]
    assert np.count_nonzero(np.array(first) == np.arange(16)) >= 5


def test_work_directory(learned):
    """Enough to resume, evaluate and plot; nothing half-written is left."""
    names = {path.name for path in learned.iterdir()}
    assert {"config.json", "checkpoints", "metrics.jsonl", "tokenizer"} <= names
    assert any("tfevents" in path.name for path in learned.rglob("*"))
    assert not any("unfinished" in name or "tmp" in name for name in names)


@pytest.mark.slow
def test_bench(albef):
    done = albef.run("bench", "--config", "tests/tiny.py", "--steps", "2")
    assert done.returncode == 0, done.stderr
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["device", "batch", "samples/s", "step time", "compile time",
                           "peak memory", "work", "rate", "MFU", "last loss"]
    rate = float(lines["samples/s"])
    median, low, high = map(float, re.findall(r"\d+\.\d+", lines["step time"]))
    assert low <= median <= high and rate == pytest.approx(16 / median, rel=0.05)
    assert 0 < float(re.match(r"[\d.]+", lines["MFU"]).group()) < 100
    assert 5 < float(lines["last loss"]) < 15


def sentence_of(done):
    """The one line that a failed command ends with."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.rstrip().splitlines()[-1]
    assert line.startswith("albef: ")
    return line


@pytest.mark.slow
def test_a_diverging_run_stops_and_keeps_its_checkpoint(albef, read_run, tmp_path):
    """The stepped schedule jumps to an absurd rate after iteration 100."""
    done = albef.train(
        tmp_path, "--config.optimizer.schedule=albef_steps", "--config.optimizer.warmup_steps=100",
        "--config.optimizer.warmup_lr=1e-3", "--config.optimizer.peak_lr=1e30",
        "--config.optimizer.steps_per_epoch=200", "--config.steps=200",
        "--config.checkpoint.every=50", "--config.log_every=10")
    sentence = sentence_of(done)
    assert re.search(r"albef: (itc|itm|mlm) is nan at step 1[01]\d; lower optimizer.peak_lr",
                     sentence)
    assert "the checkpoint of step 100 is intact" in sentence
    _, state, step = read_run(tmp_path)
    assert step == 100
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_out_of_memory(albef, tmp_path):
    """Queues of 281 TB, more than an address holds."""
    sentence = sentence_of(albef.train(tmp_path, "--config.model.embed_dim=65536",
                                        f"--config.objective.queue_size={2**30}"))
    assert "out of memory" in sentence
    assert all(switch in sentence for switch in ("remat", "accumulation", "bfloat16", "queue_size"))


def test_fewer_examples_than_a_batch(albef, tmp_path):
    sentence = sentence_of(albef.train(tmp_path, "--config.data.source.size=10"))
    assert "10 examples, fewer than one batch of 16" in sentence


def test_missing_manifest(albef, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("from albef_jax.config import default_config\n"
                      "def get_config(variant=None):\n"
                      "    config = default_config()\n"
                      "    config.data.source.files = ('gone.json',)\n"
                      "    return config\n")
    sentence = sentence_of(albef.train(tmp_path / "run", config=config))
    assert "manifest gone.json" in sentence and "check data.source.files" in sentence
