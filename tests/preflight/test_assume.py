"""What data would decide and a plan assumes: steps, ramps, the words of a tokenizer to come."""

from pathlib import Path

import pytest

from albef_jax.config import load_config
from albef_jax.data.text import train_tokenizer
from albef_jax.preflight import bench, bench_retrieval, plan
from albef_jax.preflight.assume import Vocabulary, assumed

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "tiny.py")


def tiny(*overrides):
    return load_config(TINY, [f"--config.{override}" for override in overrides])


def test_steps_come_from_the_config_or_from_the_examples():
    def steps(*overrides, examples=0):
        config = assumed(tiny(*overrides), examples)
        return config.steps, config.data.examples

    assert steps("steps=0") == (0, 0)
    assert steps("steps=0", "epochs=3", "data.examples=160") == (30, 160)
    assert steps("steps=0", "epochs=3", "data.examples=160", examples=320) == (60, 320)
    assert steps("steps=7", examples=320) == (7, 320)


def test_ramps_are_an_epoch_where_it_is_known():
    ramp = "objective.alpha_ramp_steps=-1"
    assert assumed(tiny(ramp), 160).objective.alpha_ramp_steps == 10
    assert assumed(tiny(ramp)).objective.alpha_ramp_steps == 1
    assert assumed(tiny(), 160).objective.alpha_ramp_steps == 20  # as the config says
    assert assumed(tiny(), 160).optimizer.steps_per_epoch == 10
    assert assumed(tiny("optimizer.steps_per_epoch=3"), 160).optimizer.steps_per_epoch == 3


def test_the_special_tokens_are_those_of_a_trained_tokenizer():
    trained = train_tokenizer(["a dog"], 60)
    ids = trained.pad_id, trained.cls_id, trained.sep_id, trained.mask_id
    assert Vocabulary(60)[1:] == ids


@pytest.mark.parametrize("name, words", [("demo", 400), ("flickr8k", 4000)])
def test_a_run_with_its_own_tokenizer_has_its_words(name, words):
    config = load_config(ROOT / "configs" / f"{name}.py")
    model = assumed(config).model
    assert (model.vocab_size, model.cls_id, model.mask_id) == (words, 2, 4)
    assert bench.noise_batch(assumed(config))["text_ids"].max() < words
    other = load_config(ROOT / "configs" / f"{name}.py", ["--config.data.tokenizer=bert"])
    assert assumed(other).model.vocab_size == config.model.vocab_size == 30522


@pytest.mark.parametrize("module, call", [
    (bench, lambda config: bench.bench(config, 1)),
    (bench_retrieval, lambda config: bench_retrieval.bench_retrieval(config, 2, 2, 1, 2)),
    (plan, lambda config: plan.plan(config, "gpu")),
])
def test_everything_before_a_run_has_these_words(module, call, monkeypatch):
    def build(config, mesh):
        raise LookupError(config.model.vocab_size)

    monkeypatch.setattr(module, "build", build)
    with pytest.raises(LookupError) as found:
        call(load_config(ROOT / "configs" / "demo.py"))
    assert found.value.args == (400,)
