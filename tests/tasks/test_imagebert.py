"""ImageBERT's tasks: what counts on which pairs, every switch of the paper's ablations."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import check_config, load_config
from albef_jax.core.build import build
from albef_jax.errors import UserError
from albef_jax.objectives import imagebert
from albef_jax.parallel.mesh import make_mesh
from albef_jax.preflight.bench import noise_batch
from albef_jax.tasks import make_task

TINY = Path(__file__).parents[1] / "tiny_imagebert.py"
PLAIN = ("model.dropout=0.0", "model.attention_dropout=0.0", "batch_size=8")
CHOSEN = "objective.mask_rate=1.0", "objective.mlm_budget=96", "objective.region_budget=32"


def make(*overrides, variant=""):
    """The task of a config, parameters, and a group of 8 pairs."""
    config = load_config(f"{TINY}:{variant}", [f"--config.{value}" for value in (
        *PLAIN, *overrides)])
    task = make_task(config)
    return task, task.init(jax.random.key(0)), jax.tree.map(jnp.asarray, noise_batch(config))


def metrics_of(task, params, group, draws=None, key=0):
    loss, aux = jax.jit(task.loss)(params, {}, {}, group, jax.random.key(key), {}, draws)
    return {name: float(value) for name, value in aux.metrics.items()} | {"total": float(loss)}


def swapped(task, group, rows):
    """Draws of a step in which the texts of some rows are those of the next."""
    own = jnp.arange(8)
    return task.draw(jax.random.key(1), group)._replace(pairs=imagebert.PairDraws(
        jnp.where(jnp.isin(own, jnp.array(rows)), (own + 1) % 8, own), own))


def test_negatives_count_for_matching_only():
    """What is in a text of a pair that does not match changes one loss."""
    seen = (*CHOSEN, "objective.region_zeroed=0.0")
    task, params, group = make(*seen)
    draws = swapped(task, group, [6])  # row 6 has the text of row 7, row 7 its own
    other = dict(group)
    other["regions"] = group["regions"].at[6].add(1.0)
    before, after = (metrics_of(task, params, one, draws) for one in (group, other))
    assert before["itm"] != after["itm"]
    for name in ("mlm", "moc", "mrfr"):
        assert before[name] == after[name] > 0
    everywhere, _, _ = make(*seen, "objective.masked_losses_on=all")
    before, after = (metrics_of(everywhere, params, one, draws) for one in (group, other))
    assert all(before[name] != after[name] for name in ("mlm", "moc", "mrfr", "itm"))


def test_only_negatives():
    task, params, group = make()
    metrics = metrics_of(task, params, group, swapped(task, group, range(8)))
    assert metrics["mlm"] == metrics["moc"] == metrics["mrfr"] == 0
    assert metrics["total"] == metrics["itm"] > 0


def test_nothing_masked_is_zero_and_not_nan():
    task, params, group = make("objective.mask_rate=0.0")
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(
        p, {}, {}, group, jax.random.key(0), {})[0]))(params)
    assert np.isfinite(loss) and all(np.all(np.isfinite(leaf))
                                     for leaf in jax.tree.leaves(gradient))
    assert metrics_of(task, params, group)["mlm"] == 0


def test_targets_are_those_before_masking():
    """MOC and MRFR of regions that are all replaced by zeros follow the features themselves."""
    task, params, group = make(*CHOSEN, "objective.region_zeroed=1.0")
    draws = swapped(task, group, [])
    other = group | {"regions": 2.0 * group["regions"]}
    before, after = (metrics_of(task, params, one, draws) for one in (group, other))
    assert before["mrfr"] != after["mrfr"]
    assert before["mlm"] == after["mlm"] and before["moc"] == after["moc"]  # nothing else is seen
    classes = group | {"regions_class": jnp.where(group["regions_class"] >= 0, 0, -1)}
    assert metrics_of(task, params, classes, draws)["moc"] != before["moc"]


def test_unknown_classes_do_not_count():
    task, params, group = make(*CHOSEN)
    draws = swapped(task, group, [])
    none = group | {"regions_class": jnp.full_like(group["regions_class"], -1)}
    metrics = metrics_of(task, params, none, draws)
    assert metrics["moc"] == 0 and metrics["mrfr"] > 0


@pytest.mark.parametrize("name", ["mlm", "moc", "mrfr", "itm"])
def test_a_loss_without_weight_is_not_learned(name):
    """Its head gets no gradient, and no update."""
    config = load_config(TINY, [f"--config.{value}" for value in (
        *PLAIN, f"objective.{name}=0.0", "optimizer.warmup_share=0.0")])
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    state = parts.create_state()
    before = jax.tree.map(np.array, state.params)
    after, metrics = parts.step(state, noise_batch(config), None)
    heads = {"mlm": "head", "moc": "moc_head", "mrfr": "mrfr_head", "itm": "itm_head"}
    for loss, head in heads.items():
        one, other = ((tree["bert"] if head == "head" else tree)[head]
                      for tree in (before, after.params))
        same = all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (one, other))))
        assert same == (loss == name)
    total = sum(float(metrics[loss]) for loss in heads if loss != name)
    assert float(metrics["loss"]) == pytest.approx(total, rel=1e-6)
    assert name not in [one.name for one in parts.task.shown(config)]


def test_draws_are_those_of_the_key_and_the_masking():
    task, _, group = make("objective.masking=conditional", *CHOSEN)
    draws = task.draw(jax.random.key(3), group)
    assert np.all(np.asarray(draws.words.chosen[:, 0]) ^ np.asarray(draws.regions.chosen[:, 0]))
    again = task.draw(jax.random.key(3), group)
    jax.tree.map(np.testing.assert_array_equal, draws, again)
    masked, predicted = task.mask(task.paired(group, *draws.pairs), draws)
    mask = np.asarray(task.paired(group, *draws.pairs)["text_mask"])
    last = mask.sum(axis=1) - 1
    rows = np.arange(8)
    assert not np.any(np.asarray(predicted["words"])[rows, last])  # [SEP]
    assert not np.any(np.asarray(predicted["words"])[:, 0])  # [CLS]


@pytest.mark.parametrize("overrides, columns", [
    ((), 4), (("data.regions_length=2",), 2), (("data.global_width=5",), 5)])
def test_region_count_and_global_feature(overrides, columns):
    task, params, group = make(*overrides)
    functions = task.predict_fns()
    images = {name: group[name] for name in ("regions", "regions_box", "regions_mask",
                                             "global_feature") if name in group}
    assert functions["embed_image"](params, **images).shape[1] == columns
    assert np.isfinite(metrics_of(task, params, group)["total"])


@pytest.mark.parametrize("losses", [("binary",), ("multiclass",), ("triplet",),
                                    ("binary", "multiclass", "triplet")])
def test_losses_of_fine_tuning_alone_and_together(losses):
    weights = [f"objective.{name}={0.5 * (name in losses)}"
               for name in ("binary", "multiclass", "triplet")]
    task, params, group = make(*weights, "objective.negatives_per_pair=3", variant="retrieval")
    metrics = metrics_of(task, params, group)
    assert metrics["total"] == pytest.approx(sum(0.5 * metrics[name] for name in losses), rel=1e-6)
    assert {one.name for one in task.shown(load_config(f"{TINY}:retrieval", [
        f"--config.{value}" for value in weights]))} == {"loss", *losses}


@pytest.mark.parametrize("variant, override, sentence", [
    ("", "objective.masking=both", "must be 'joint' or 'conditional'"),
    ("", "objective.masked_losses_on=none", "must be 'positives' or 'all'"),
    ("", "objective.mask_replace=(1,1,0)", "three shares that sum to 1"),
    ("", "objective.negative_share=1.5", "config.objective.negative_share is 1.5"),
    ("", "data.text_length=32", r"32 and a final \[SEP\] exceed model.max_positions 32"),
    ("", "data.sep=False", r"words end with \[SEP\]"),
    ("", "model.text_heads=3", "not a multiple of model.text_heads 3"),
    ("retrieval", "objective.negatives_per_pair=8", "a group has 8 pairs; set it"),
    ("retrieval", "objective.binary=0.0", "are all 0; give one of them a weight"),
])
def test_what_makes_no_sense(variant, override, sentence):
    with pytest.raises(UserError, match=sentence):
        check_config(load_config(f"{TINY}:{variant}", [f"--config.{override}"]))
