"""`albef bench`: a batch of noise fits every task; the parts of a retrieval evaluation."""

import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.parallel.mesh import make_mesh
from albef_jax.preflight.bench import noise_batch
from albef_jax.tasks import TASKS

TINY = Path(__file__).parents[1] / "tiny.py"


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_of_noise_fits_every_task(name):
    scale = name.startswith("scale_")
    config = load_config(f"{TINY.with_name('tiny_scale.py')}:{name}") if scale else load_config(
        TINY, [f"--config.task={name}"])
    parts, batch = build(config, make_mesh(devices=jax.devices()[:1])), noise_batch(config)
    assert {key: (x.shape, x.dtype) for key, x in batch.items()} == {
        key: (x.shape, x.dtype) for key, x in parts.batch_spec.items()}
    task = parts.task
    group = {key: jnp.asarray(value[:config.group_size]) for key, value in batch.items()}

    def loss(rng):
        params, memory = task.init(rng), task.init_memory(rng)
        return task.loss(params, task.teacher_of(params), memory, group, rng, task.schedule(0))

    total, aux = jax.eval_shape(loss, jax.random.key(0))
    assert total.shape == () and "loss" in aux.metrics
    texts = [("text_ids", "text_mask"), ("answer_ids", "answer_mask")]
    for ids, mask in ((batch[i], batch[m]) for i, m in texts if i in batch):
        assert (ids[..., 0] == config.model.cls_id).all() and (mask[..., 0] == 1).all()
        assert ((ids == config.model.pad_id) == (mask == 0)).all()
        assert (np.diff(mask, axis=-1) <= 0).all()  # padded on the right


def test_noise_is_a_function_of_its_seed():
    config = load_config(TINY)
    one, same, other = (noise_batch(config, seed) for seed in (1, 1, 2))
    for name in ("image", "text_ids", "text_mask"):
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()


def test_where_the_time_of_a_step_goes(tmp_path, capsys):
    """Parts of the model under the rates; shares of all of them, in the order of their time."""
    assert main(["bench", "--breakdown", "--config", str(TINY), "--steps", "2",
                 "--json", str(tmp_path / "bench.json"), "--config.batch_size=8"]) == 0
    rates, _, table = capsys.readouterr().out.partition("by part, measured")
    assert "samples/s" in rates
    rows = [line.rsplit(maxsplit=6) for line in table.splitlines()[2:]]
    times = {name.strip(): [float(value) for value in values] for name, *values in rows}
    assert {"visual_encoder/block/mlp", "text_encoder/fusion/cross"} <= times.keys()
    *parts, small, total = times.values()
    assert parts == sorted(parts, key=lambda row: -row[4]) and total[5] == 100.0
    assert sum(row[4] for row in (*parts, small)) == pytest.approx(total[4], abs=0.02 * len(times))
    forward, backward, teacher = times["visual_encoder/block/mlp"][:3]
    assert min(forward, backward, teacher) > 0

    found = json.loads((tmp_path / "bench.json").read_text())
    assert len(found["seconds"]) == 2 and (found["batch"], found["dtype"]) == (8, "float32")
    assert f"{found['samples_per_second']:.2f}" in rates
    assert sum(row["seconds"] for row in found["parts"]) == pytest.approx(total[4] / 1e3, abs=1e-5)


def test_a_task_of_which_little_is_known(outside_config, capsys):
    """No teacher, no queues, no text, no FLOPs, no type."""
    assert main(["bench", "--config", str(outside_config), "--steps", "2"]) == 0
    rows = dict(line.split(maxsplit=1) if " " in line else (line, "")
                for line in capsys.readouterr().out.splitlines())
    assert rows.keys() >= {"device", "batch", "samples/s"}
    assert "MFU" not in rows and "work" not in rows and "rate" not in rows
    assert rows["batch"] == "16 in groups of 8, 1 micro-step(s), float32"
    assert float(rows["samples/s"]) > 0 and float(rows["last"].split()[-1]) > 0


@pytest.mark.parametrize("argument, sentence", [
    ("--retrieval", "evals.noise is of kind 'retrieval', which .* cannot do; it can do none"),
    ("--input", "measures how images are read, and the task .*:Contrast' has none")])
def test_what_a_task_does_not_have(outside_config, capsys, argument, sentence):
    assert main(["bench", argument, "--config", str(outside_config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line)


def test_the_parts_of_a_retrieval_evaluation(capsys):
    sizes = ["--images", "24", "--texts", "56", "--k", "8", "--batch-size", "8"]
    assert main(["bench", "--retrieval", "--config", str(TINY), *sizes]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("24 images, 56 texts, k=8, batch 8, float32 on 1 x cpu")
    rows = dict(re.findall(r"^(\w[\w ,]*?) {2,}([\d.]+)", printed, re.MULTILINE))
    seconds = [float(rows[name]) for name in (
        "encode images", "encode texts", "similarities and candidates", "recalls by similarity",
        "scores of candidates", "recalls of candidates")]
    assert sum(seconds) == pytest.approx(float(rows["total"]), abs=0.01) and min(seconds) >= 0
    # Eight of each image and eight of each text, some of them the same.
    assert 8 * 56 <= int(rows["pairs"]) <= 8 * 24 + 8 * 56
    # Every call of the scoring function is repeated: there is something to compute.
    assert float(re.search(r"compute alone .* ([\d.]+)% of scores", printed)[1]) > 1


def test_every_pair_of_a_model_without_features(capsys):
    sizes = ["--images", "6", "--texts", "14", "--batch-size", "8"]
    assert main(["bench", "--retrieval", "--config", "tests/tiny_imagebert.py", *sizes]) == 0
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^(\w[\w ,]*?) {2,}([\d.]+)", printed, re.MULTILINE))
    assert rows.keys() >= {"embed images", "embed texts", "scores of candidates"}
    assert int(rows["pairs"]) == 6 * 14 and "pairs/s" in printed
