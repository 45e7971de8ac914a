"""Evaluation from a work directory alone: the values, the files, and what is missing."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from albef_jax.cli import main
from albef_jax.config import default_config, to_json
from albef_jax.core.build import build
from albef_jax.data.sources import make_source
from albef_jax.data.text import clean_caption, train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluate import evaluate, fingerprint
from albef_jax.evaluators import make_evaluators
from albef_jax.evaluators.base import Evaluator, Forward
from albef_jax.models.albef import Albef
from albef_jax.parallel.mesh import make_mesh
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.restore import restore_parts
from albef_jax.run.workdir import read_config
from albef_jax.tasks.base import Aux, Task

ROOT = Path(__file__).parents[1]
HELD_OUT = {"kind": "synthetic", "size": 20, "image_size": 32}


def make_config(tokenizer):
    """A model of one layer per encoder; its training data does not exist."""
    config = default_config().unlock()
    config.batch_size, config.group_size, config.steps = 8, 4, 10
    config.model.update(
        image_size=32, patch_size=16, vit_width=32, vit_depth=1, vit_heads=2, vit_mlp_ratio=2.0,
        text_width=32, text_layers=1, fusion_layers=1, text_heads=2, text_mlp_width=64,
        max_positions=32, embed_dim=16, dtype="float32", vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id, cls_id=tokenizer.cls_id, mask_id=tokenizer.mask_id)
    config.objective.update(queue_size=16, alpha_ramp_steps=10)
    config.data.source.files = ("gone.json",)
    config.data.update(text_length=16, engine="pillow")
    for name, kind in (("dev", "retrieval"), ("pairs", "matching"), ("words", "masked")):
        config.evals[name] = dict(kind=kind, source=HELD_OUT, batch_size=16)
    config.evals.dev.k = 4
    return config.lock()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory with checkpoints of steps 5 and 10, and the parameters of step 10."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    workdir.mkdir()
    source = make_source(HELD_OUT)
    captions = [clean_caption(c, 30) for i in range(len(source)) for c in source.get(i, "text")]
    tokenizer = train_tokenizer(captions, 200)
    tokenizer.save(str(workdir / "tokenizer"))
    config = make_config(tokenizer)
    (workdir / "config.json").write_text(to_json(config))
    parts = build(config, make_mesh())
    checkpointer = Checkpointer(workdir, config.checkpoint)
    for step in (5, 10):
        state = build(with_seed(config, step), parts.mesh).create_state()
        state = state.replace(
            step=jnp.int32(step),
            # Random weights have nearly equal [CLS] states; larger ones tell inputs apart.
            params=jax.tree.map(lambda x: 3 * x, state.params),
            # Only the online model may be evaluated.
            teacher=jax.tree.map(lambda x: x * 0, state.teacher))
        checkpointer.save(step, state)
    checkpointer.close()
    return workdir, config, tokenizer, parts, state


def with_seed(config, seed):
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    return config


def test_values_are_those_of_the_saved_online_parameters(trained, capsys):
    workdir, config, tokenizer, parts, state = trained
    results = evaluate(workdir)
    printed = capsys.readouterr().out
    for name, evaluator in make_evaluators(config, tokenizer).items():
        forward = Forward(state.params, parts.task.predict_fns(), parts.mesh)
        expected = dict(evaluator.run(forward))
        assert results[name] == expected and list(expected) == evaluator.names()
        written = json.loads((workdir / "results" / f"{name}.json").read_text())
        assert written["values"] == expected and written["step"] == 10
        assert written["config_fingerprint"] == fingerprint(config)
        assert (workdir / written["checkpoint"]).is_dir()
        assert f"{name} at step 10 ({evaluator.description})\n" in printed
    assert sorted(p.name for p in (workdir / "results").iterdir()) == [
        "dev.json", "pairs.json", "words.json"]
    assert set(results["pairs"]) == {"itm_accuracy_random", "itm_accuracy_hard"}
    assert re.search(rf"\n  r_mean +{results['dev']['r_mean']:.2f}\n", printed)


def test_images_are_encoded_once_for_all_evaluators(trained, monkeypatch):
    encoded, encode_image = [], Albef.encode_image

    def counting(self, image):
        jax.debug.callback(lambda image: encoded.append(len(image)), image)
        return encode_image(self, image)

    monkeypatch.setattr(Albef, "encode_image", counting)
    evaluate(trained[0], overrides=[f"--config.evals.{name}.batch_size=10"
                                    for name in ("dev", "pairs", "words")])
    jax.effects_barrier()
    assert encoded == [10, 10]


def test_parts_of_a_checkpoint(trained):
    workdir, _, _, parts, state = trained
    found, step = restore_parts(workdir, parts, ("teacher", "memory"), step=10)
    assert step == 10 and found.keys() == {"teacher", "memory"}
    for name, tree in found.items():
        for ours, saved in zip(jax.tree.leaves(tree), jax.tree.leaves(getattr(state, name)),
                               strict=True):
            assert (ours == saved).all() and ours.sharding == saved.sharding


class Nothing(Task):
    """A task without texts, teacher, memory and model: it counts nothing and learns nothing."""

    @classmethod
    def fields(cls, config):
        return {}

    def __init__(self, config):
        self.functions = {"double": lambda params: 2 * params["weight"]}

    def init(self, rng):
        return {"weight": jnp.full((3,), 4.0)}

    def init_boxed(self, rng):
        return self.init(rng)

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        return jnp.sum(params["weight"]), Aux({}, {}, {})

    def predict_fns(self):
        return self.functions


class Doubling(Evaluator):
    calls = ("double",)

    def run(self, forward):
        yield "double", float(forward.compiled(forward["double"])(forward.params)[0])


def test_a_task_without_texts_and_teacher_needs_no_tokenizer(tmp_path, capsys):
    """Its run is evaluated, its page is written, from the config and the checkpoint alone."""
    config = default_config(f"{__name__}:Nothing")
    config.steps = 3
    config.data.source = HELD_OUT
    config.evals.own = dict(kind=f"{__name__}:Doubling", source=HELD_OUT)
    (tmp_path / "config.json").write_text(to_json(config))
    parts = build(read_config(tmp_path), make_mesh())
    checkpointer = Checkpointer(tmp_path, config.checkpoint)
    checkpointer.save(3, parts.create_state().replace(step=jnp.int32(3)))
    checkpointer.close()
    assert evaluate(tmp_path) == {"own": {"double": 8.0}}
    assert not (tmp_path / "results" / "own_predictions.json").exists()
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "8.0" in page and "0.0 M parameters" in page and "no folder tokenizer" not in page


def test_evaluators_of_another_config(trained, tmp_path):
    """Zero-shot: one run, the benchmark of another; its results stand beside the run's own."""
    workdir, config = trained[0], trained[1]
    path = tmp_path / "other.py"
    path.write_text(
        "from albef_jax.config import default_config\n"
        "def get_config(variant=None):\n"
        "    config = default_config()\n"
        f"    config.evals.zero_shot = dict(kind='retrieval', source={HELD_OUT}, batch_size=16)\n"
        "    return config\n")
    assert main(["evaluate", str(workdir), "--config", str(path),
                 "--config.evals.zero_shot.k=4"]) == 2  # the config does not name k
    assert main(["evaluate", str(workdir), "--config", str(path),
                 "--config.evals.zero_shot.batch_size=8"]) == 0
    written = json.loads((workdir / "results" / "zero_shot.json").read_text())
    plain = evaluate(workdir, overrides=["--config.evals.dev.k=128"])["dev"]
    assert written["values"] == plain and (workdir / "results" / "dev.json").exists()
    assert written["config_fingerprint"] != fingerprint(config)


@pytest.mark.slow
def test_devices_and_batch_size_do_not_change_the_values(trained):
    """Four devices and another batch, in another process, write what one device writes."""
    workdir = trained[0]
    code = ("import sys; from albef_jax.evaluate import evaluate;"
            "evaluate(sys.argv[1], step=5, overrides=['--config.evals.dev.batch_size=5'])")
    subprocess.run([sys.executable, "-c", code, str(workdir)], cwd=ROOT, check=True,
                   env=os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"})
    written = {name: json.loads((workdir / "results" / f"{name}.json").read_text())
               for name in trained[1].evals}
    assert evaluate(workdir, step=5) == {name: w["values"] for name, w in written.items()}
    assert {w["step"] for w in written.values()} == {5}
    assert written["dev"]["config_fingerprint"] != fingerprint(trained[1])


@pytest.mark.parametrize("override, sentence", [
    ("--config.evals.dev.kk=2", "config.evals.dev.kk does not exist"),
    ("--config.evals.dev.k=many", "config.evals.dev.k is a int (4); 'many' is not"),
    ("--config.data.text_length=None", "config.data.text_length is None; it must be a whole"),
    ("--config.matmul_precision=hihg", "it must be 'default', 'high' or 'highest'"),
    ("--config.evals.dev.k=0", "k=0; it must be a whole number, at least 1"),
])
def test_overrides_that_do_not_fit(trained, override, sentence):
    with pytest.raises(UserError) as error:
        evaluate(trained[0], overrides=[override])
    assert sentence in str(error.value)


def test_what_is_missing_is_named(trained, tmp_path):
    workdir, config = trained[0], trained[1]

    def fails_with(sentence, **arguments):
        with pytest.raises(UserError) as error:
            evaluate(tmp_path, **arguments)
        assert sentence in str(error.value)

    fails_with("config.json does not exist; give the work directory of a training run")
    (tmp_path / "config.json").write_text("{")
    fails_with("is not the config of a run")
    without = config.copy_and_resolve_references()
    without.evals = {}
    (tmp_path / "config.json").write_text(to_json(without))
    fails_with("is empty, so there is nothing to evaluate")
    (tmp_path / "config.json").write_text(to_json(config))
    fails_with("has no folder tokenizer")
    os.symlink(workdir / "tokenizer", tmp_path / "tokenizer")
    fails_with("has no checkpoints")
    (tmp_path / "checkpoints").mkdir()
    fails_with("There is no checkpoint in")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        evaluate(workdir, step=7)
