"""SCALE: any modalities, missing ones, no masked word, switches; parity is in test_parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import check_config, default_config, load_config
from albef_jax.core.build import build, trained
from albef_jax.errors import UserError
from albef_jax.models.scale import MODALITIES, withheld
from albef_jax.parallel.mesh import make_mesh
from albef_jax.preflight.bench import noise_batch
from albef_jax.tasks import make_task
from albef_jax.tasks.scale import LOSSES, RELEASED

TINY = "tests/tiny_scale.py"


def tiny(task="scale_pretrain", **values):
    config = load_config(f"{TINY}:{task}", [f"--config.{key.replace('__', '.')}={value}"
                                           for key, value in values.items()])
    check_config(config)
    return config


def loss_and_gradient(config, change=lambda batch: batch):
    """Total, metrics and gradient of a group of noise, without dropout."""
    config = config.copy_and_resolve_references().unlock()
    config.model.update(dropout=0.0, attention_dropout=0.0)
    task = make_task(config.lock())
    params = task.init(jax.random.key(0))
    group = change({name: jnp.asarray(x[:8]) for name, x in noise_batch(config).items()})

    @jax.jit
    def run(params):
        def loss(p):
            total, aux = task.loss(p, {}, {}, group, jax.random.key(1), {})
            return total, aux.metrics
        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, metrics), grads = run(params)
    return float(total), metrics, grads


def all_finite(grads):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("letters", ["t", "p", "iv", "tipva"])
def test_any_modalities_train(letters):
    config = tiny(model__modalities=letters)
    total, metrics, grads = loss_and_gradient(config)
    there = {LOSSES[m] for m in letters} | {"cl"}
    assert {*LOSSES.values(), "cl"} & metrics.keys() == there
    assert total == pytest.approx(sum(float(metrics[name]) for name in there), rel=1e-5)
    assert all_finite(grads) and (metrics["cl"] > 0) == (len(letters) > 1)
    weights = {name for name in metrics if name.startswith("weight_")}
    assert weights == {f"weight_{MODALITIES[m]}" for m in letters}
    names = {name.split("_")[1] for name in grads if not name.startswith("jct")} - {"heads"}
    extra = {"title"} if letters == "p" else set()  # words of the table's head and embeddings
    assert names == {MODALITIES[m] for m in letters} | extra
    assert set(make_task(config).fields(config)) == {MODALITIES[m] for m in letters}


@pytest.mark.parametrize("values, still", [
    ({}, set()),
    # Without contrast nothing reads projections; without scores, released heads no joint state.
    ({"objective__cl": 0.0}, {"projections"}),
    ({"objective__simcl_mode": "off", "model__masked_head_input": "unimodal"}, {"jct"}),
    ({"objective__simcl_gradient": False, "model__masked_head_input": "unimodal"}, {"jct"}),
    ({"objective__mrp": 0.0}, {"masked_heads_regions"})])
def test_parameters_without_gradient_are_found(values, still):
    parts = build(tiny(**values), make_mesh(devices=jax.devices()[:1]))
    params = jax.eval_shape(parts.task.init, jax.random.key(0))
    reached = trained(parts.task, params, parts.example)
    unreached = {name for name, tree in reached.items() if not any(jax.tree.leaves(tree))}
    assert unreached == {name for name in params if any(map(name.startswith, still))}
    assert bool(unreached) == bool(still)
    assert all(all(jax.tree.leaves(reached[name])) for name in params.keys() - unreached)


def test_a_group_without_a_masked_word():
    """Its masked losses are 0, not NaN."""
    total, metrics, grads = loss_and_gradient(tiny(objective__mask_rate=0.0))
    assert all(metrics[name] == 0.0 for name in LOSSES.values())
    assert total == pytest.approx(float(metrics["cl"])) and all_finite(grads)


def without(*letters):
    """A change of a batch in which some products, or with capitals all, lack a modality."""
    def change(batch):
        batch = dict(batch)
        for letter in letters:
            name, gone = MODALITIES[letter.lower()], slice(None) if letter.isupper() else slice(3)
            batch[name] = batch[name].at[gone].set(0.0)
            batch[f"{name}_mask"] = batch[f"{name}_mask"].at[gone].set(1)
            batch[f"{name}_present"] = batch[f"{name}_present"].at[gone].set(False)
        return batch

    return change


@pytest.mark.slow
def test_missing_values_that_count_or_not():
    """With everything there the policies agree; with zeros they do not, and no one gives NaN."""
    policies = [tiny(model__missing_policy=name) for name in ("zero_attend", "zero_mask")]
    attend, mask = (loss_and_gradient(config) for config in policies)
    assert attend[0] == pytest.approx(mask[0], rel=1e-6)
    for change in (without("v", "a"), without("V", "A")):
        attend, mask = (loss_and_gradient(config, change) for config in policies)
        assert all_finite(attend[2]) and all_finite(mask[2])
        assert abs(attend[0] - mask[0]) > 1e-3
    assert mask[1]["mfp"] == mask[1]["mam"] == 0.0 and attend[1]["mfp"] > 0
    assert mask[1]["weight_video"] == 0.0


def encoded(config, change=lambda batch: batch):
    task = make_task(config)
    params = task.init(jax.random.key(0))
    batch = change({name: jnp.asarray(x[:4]) for name, x in noise_batch(config).items()})
    return jax.jit(lambda p, b: task.predict_fns()["encode"](p, **b))(params, batch)


@pytest.mark.parametrize("policy", ["zero_attend", "zero_mask"])
def test_what_is_withheld_is_not_seen(policy):
    config = tiny(model__missing_policy=policy)
    other = encoded(config, lambda batch: withheld(
        {**batch, "video": batch["video"] + 1.0, "table_ids": batch["table_ids"] * 0 + 7}, "ti"))
    seen = encoded(config, lambda batch: withheld(
        {**batch, "table_ids": batch["table_ids"] * 0 + 7}, "ti"))
    whole = encoded(config)
    assert {*"tipva", *(f"joint_{m}" for m in "tipva"), "scores", "scores_contrast"} == set(whole)
    for name in ("t", "joint_t", "joint_i"):
        np.testing.assert_allclose(seen[name], other[name], atol=1e-6)
    np.testing.assert_allclose(seen["t"], whole["t"], atol=1e-6)
    assert np.max(np.abs(seen["joint_t"] - whole["joint_t"])) > 1e-3


@pytest.mark.parametrize("task", ["scale_pretrain", "scale_classify"])
def test_training_sees_a_part_of_each_product(task):
    shown = []
    for share in (0.0, 1.0):
        config = tiny(task, objective__withheld=share)
        group = {name: jnp.asarray(x[:8]) for name, x in noise_batch(config).items()}
        made = make_task(config)
        part = made.shown_part(jax.random.key(0), group)
        shown.append(np.stack([part[f"{name}_present"] for name in MODALITIES.values()]).sum(0))
        for name in ("regions", "video", "audio"):
            seen = np.abs(np.asarray(part[name])).reshape(8, -1).any(axis=1)
            np.testing.assert_array_equal(seen, part[f"{name}_present"])
    assert shown[0].tolist() == [5] * 8 and shown[1].tolist() == [1] * 8


def test_the_jct_places_modalities_as_if_all_were_there():
    """Video begins after 6 + 8 + 5 tokens though neither table nor regions are there."""
    config = tiny(model__modalities="tv")
    task = make_task(config)
    params = task.init(jax.random.key(0))
    batch = {name: jnp.asarray(x[:4]) for name, x in noise_batch(config).items()}

    @jax.jit
    def gradient(p):
        return jax.grad(lambda p: sum(jnp.sum(x**3) for name, x in task.predict_fns()["encode"](
            p, **batch).items() if name.startswith("joint")))(p)["jct_position"]

    used = np.flatnonzero(np.any(np.asarray(gradient(params)) != 0, axis=1))
    assert set(used) <= {*range(6), *range(19, 23)} and {0, 19} <= set(used)


def test_words_are_predicted_where_they_are_masked():
    """The budget of a text is fixed; what does not fit is counted and left out."""
    config = tiny(objective__mask_rate=0.9, objective__title_budget=1)
    _, metrics, _ = loss_and_gradient(config)
    assert metrics["mlm_overflow_per_group"] > 0 and metrics["mem_overflow_per_group"] == 0
    words = make_task(config).predict_fns()["words"]
    batch = {name: jnp.asarray(x[:4]) for name, x in noise_batch(config).items()}
    logits = jax.jit(lambda p: words(p, **batch))(make_task(config).init(jax.random.key(0)))
    assert logits["title"].shape == (4, 6, 100) and logits["table"].shape == (4, 8, 100)


@pytest.mark.slow
def test_modes_of_scores_change_the_losses():
    totals = {loss_and_gradient(tiny(**{f"objective__{key}": value}))[0] for key, value in (
        ("simcl_mode", "logit"), ("simcl_mode", "loss"), ("simcl_mode", "off"),
        ("simcl_row_norm", False), ("cl_reduction", "sum"), ("mem", 0.5))}
    assert len(totals) == 6 and all(map(np.isfinite, totals))


def test_the_table_has_words_of_its_own():
    config = tiny(model__table_embeddings="own", model__table_segment=1)
    _, _, grads = loss_and_gradient(config)
    table, title = (grads[f"embeddings_{name}"] for name in ("table", "title"))
    assert np.any(table["token_type"][1]) and not np.any(title["token_type"][1])
    assert np.any(title["word"][:, 0]) and np.any(table["word"][:, 0])


def test_released_switches_are_keys_of_the_config():
    config = default_config("scale_pretrain").unlock()
    config.update_from_flattened_dict(RELEASED)
    check_config(config)
    assert config.model.share_encoders and config.optimizer.bias_correction is False
    parameters = jax.eval_shape(make_task(tiny(
        model__share_encoders=True)).init, jax.random.key(0))
    assert not any(name.startswith(("encoders_table", "encoders_video")) for name in parameters)


@pytest.mark.parametrize("values, sentence", [
    ({"model__modalities": "it"}, "model.modalities is 'it'; give some of the letters tipva, in"),
    ({"model__modalities": ""}, "model.modalities is ''"),
    ({"model__jct_heads": 3}, "model.width 16 is not a multiple of model.jct_heads 3"),
    ({"data__video_length": 9}, "data.video_length makes 10 tokens with the global ones, which "
                                "exceeds model.max_video 4"),
    ({"model__max_jct": 20}, "data.text_length .* exceeds model.max_jct 20"),
    ({"data__eval_text_length": 9}, "data.eval_text_length 9 exceeds data.text_length 6"),
    ({"objective__simcl_mode": "on"}, "simcl_mode is 'on'; it must be 'logit', 'loss' or 'off'"),
    ({"model__missing_policy": "drop"}, "model.missing_policy is 'drop'; it must be "
                                        "'zero_attend' or"),
    ({"objective__mask_replace": (0.5, 0.1, 0.1)}, "objective.mask_replace is"),
    ({"objective__cl": -1.0}, "config.objective.cl is -1.0; it must be a number, at least 0")])
def test_configs_that_make_no_sense(values, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**values)


def test_products_are_classified():
    config = tiny("scale_classify")
    task = make_task(config)
    params = task.init(jax.random.key(0))
    batch = {name: jnp.asarray(x[:8]) for name, x in noise_batch(config).items()}
    total, aux = jax.jit(lambda p: task.loss(p, {}, {}, batch, jax.random.key(1), {}))(params)
    assert total > 0 and 0 <= aux.metrics["accuracy"] <= 1
    fns = {name: jax.jit(lambda p, f=f: f(p, **batch)) for name, f in task.predict_fns().items()}
    found = fns["encode"](params)
    assert fns["classify"](params).shape == (8, 5) and found["hidden"].shape == (8, 12)
    assert {f"joint_{m}" for m in "tipva"} <= set(found)
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    assert all(jax.tree.leaves(trained(parts.task, params, parts.example)))
