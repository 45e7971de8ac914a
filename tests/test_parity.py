"""tests/parity.py: golden cases pass, mistakes are caught, and no size is built in."""

import json
import os
from pathlib import Path
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from albef_jax.tasks.pretrain import Pretrain, PretrainDraws
from albef_jax.objectives.masking import MaskingDraws
from albef_jax.weights.foreign import salesforce

GOLDEN = Path(os.environ.get("ALBEF_GOLDEN", Path(__file__).parent / "golden"))
# Sizes that none of the recordings has: towers of different widths, one layer each, 25 patches.
OTHER = dict(image_res=30, patch=6, vit_dim=20, vit_depth=1, vit_heads=5, bert_dim=12,
             bert_heads=3, bert_layers=2, fusion_layer=1, bert_inter=28, vocab=61, max_pos=11,
             embed_dim=6, queue_size=15, batch=5, temp=0.2, momentum=0.9, mlm_probability=0.3,
             alpha=0.3, seq=7)


def run(monkeypatch, capsys, *folders):
    """Runs the command; returns its exit code and what it printed."""
    monkeypatch.setattr("sys.argv", ["parity.py", *map(str, folders)])
    with pytest.raises(SystemExit) as end:
        parity.main()
    return end.value.code, capsys.readouterr().out


def misses(printed):
    return [line.split("  ")[0].strip() for line in printed.splitlines() if "MISS" in line]


def slow(*case):
    """A case for `make test-slow`: half a minute of compilation each."""
    return pytest.param(*case, marks=pytest.mark.slow)


# The fast ones have five steps of pre-training and of a task that is fine-tuned; forward passes of
# all models are compared in tests/models/test_golden_forward.py.
@pytest.mark.parametrize("name, least", [
    ("pretrain_train", 350), ("retrieval", 180), slow("pretrain_forward", 400),
    slow("pretrain_2proc", 20), slow("vqa", 150), slow("nlvr", 160),
    slow("grounding", 22), slow("ve", 120), slow("nlvr_pretrain", 100)])
def test_golden_cases(monkeypatch, capsys, name, least):
    code, printed = run(monkeypatch, capsys, GOLDEN / name)
    compared = int(re.search(rf"{name}: (\d+) compared, 0 missed", printed).group(1))
    assert code == 0 and compared >= least and not misses(printed)
    assert printed.count("  ok\n") == compared


def random_inputs(config, rng):
    """A batch and draws under the recordings' names; every fourth text token is padding."""
    b, length, vocab = config["batch"], config["seq"], config["vocab"]
    ids = rng.integers(5, vocab, (b, length))
    ids[:, 0] = 2
    mask = np.ones((b, length), np.int64)
    mask[1:, 5:] = 0
    ids = ids * mask
    draw = {name: rng.integers(0, 2, (b, length)) for name in ("mask", "replace", "random")}
    words = rng.integers(0, vocab, (b, length))
    chosen = (draw["mask"] == 1) & (mask == 1) & (ids != 2)
    written = np.where(draw["replace"] == 1, 4, np.where(draw["random"] == 1, words, ids))
    return {
        "image": rng.normal(size=(b, 3, config["image_res"], config["image_res"])).astype("f4"),
        "input_ids": ids, "attention_mask": mask, "alpha": np.float32(config["alpha"]),
        **{f"{name}_draw": values for name, values in draw.items()}, "random_words": words,
        "mlm_input_ids": np.where(chosen, written, ids),
        "mlm_labels": np.where(chosen, ids, -100),
        "neg_image_idx": (np.arange(b) + 1) % b, "neg_text_idx": (np.arange(b) + 2) % b}


def ours_of(config):
    """The same sizes as a config of this project, without dropout."""
    from ml_collections import ConfigDict

    c = config
    return ConfigDict(dict(
        batch_size=c["batch"],
        model=dict(
            image_size=c["image_res"], patch_size=c["patch"], vit_width=c["vit_dim"],
            vit_depth=c["vit_depth"], vit_heads=c["vit_heads"], vit_mlp_ratio=2.0,
            text_width=c["bert_dim"], text_layers=c["fusion_layer"],
            fusion_layers=c["bert_layers"] - c["fusion_layer"], text_heads=c["bert_heads"],
            text_mlp_width=c["bert_inter"], vocab_size=c["vocab"], max_positions=c["max_pos"],
            embed_dim=c["embed_dim"], dropout=0.0, attention_dropout=0.0, dtype="float32",
            init_std=0.02, pad_id=0, cls_id=2, mask_id=4),
        objective=dict(
            temperature=c["temp"], queue_size=c["queue_size"], momentum=c["momentum"],
            alpha_itc=c["alpha"], alpha_mlm=c["alpha"], alpha_ramp_steps=0, itc=True,
            negatives="hard", positives="pair", mask_rate=0.15, mask_replace=(0.8, 0.1, 0.1),
            mlm_budget=0)))


def official(model, params, teacher, memory):
    return parity.add_tied({
        **salesforce.write_tensors(salesforce.pretrain_table(model), params, model.patch_size),
        **salesforce.write_tensors(salesforce.teacher_table(model), teacher, model.patch_size,
                                   salesforce.momentum_name),
        "image_queue": np.asarray(memory["image_queue"]).T,
        "text_queue": np.asarray(memory["text_queue"]).T,
        "queue_ptr": np.asarray(memory["pointer"])[None]})


@pytest.fixture(scope="module")
def other_case(tmp_path_factory):
    """A case of other sizes, written from the task's loss and `jax.grad`, without the step."""
    folder = tmp_path_factory.mktemp("case") / "other_sizes"
    folder.mkdir()
    rng = np.random.default_rng(0)
    inputs, config = random_inputs(OTHER, rng), ours_of(OTHER)
    task = Pretrain(config)
    params = task.init(jax.random.key(1))
    params = jax.tree.map(lambda x: x * 4.0 if x.ndim > 1 else x, params)
    stale = jax.tree.map(lambda x: 1.1 * x, task.teacher_of(params))
    memory = {**task.init_memory(jax.random.key(2)), "pointer": jnp.int32(10)}
    teacher = jax.tree.map(lambda m, p: 0.9 * m + 0.1 * p, stale, task.teacher_of(params))
    group = {"image": inputs["image"].transpose(0, 2, 3, 1),
             "text_ids": jnp.asarray(inputs["input_ids"], jnp.int32),
             "text_mask": jnp.asarray(inputs["attention_mask"], jnp.int32)}
    draws = PretrainDraws(
        MaskingDraws(*(jnp.asarray(inputs[f"{name}_draw"], bool)
                       for name in ("mask", "replace", "random")),
                     jnp.asarray(inputs["random_words"], jnp.int32)),
        jnp.asarray(inputs["neg_image_idx"]), jnp.asarray(inputs["neg_text_idx"]))
    schedule = {"alpha_itc": 0.3, "alpha_mlm": 0.3}

    def loss(p):
        return task.loss(p, teacher, memory, group, jax.random.key(0), schedule, draws)

    (total, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert np.isfinite(total)
    logits, on = np.asarray(aux.record["itm"]["logits"]), aux.record["online"]
    np.savez(folder / "inputs.npz", **inputs)
    np.savez(folder / "state_dict.npz", **official(config.model, params, stale, memory))
    np.savez(folder / "outputs.npz", image_embeds=on["image"], text_feat=on["text_feat"],
             sim_t2i=aux.record["itc"]["t2i"], loss_mlm=aux.metrics["mlm"],
             loss_ita=aux.metrics["itc"], loss_itm=aux.metrics["itm"],
             itm_logits=np.concatenate([logits[0], logits[2], logits[1]]))
    names = salesforce.pretrain_table(config.model)
    np.savez(folder / "grads.npz", **salesforce.write_tensors(names, grads, OTHER["patch"]))
    np.savez(folder / "state_after.npz", **official(
        config.model, params, teacher, task.update_memory(memory, aux.enqueue)))
    (folder / "meta.json").write_text(json.dumps({"case": "other_sizes", "config": OTHER}))
    return folder


@pytest.mark.slow
def test_other_sizes_pass(monkeypatch, capsys, other_case):
    code, printed = run(monkeypatch, capsys, other_case)
    assert code == 0, misses(printed)
    recorded = sum(len(np.load(other_case / f"{name}.npz").files)
                   for name in ("outputs", "grads", "state_after"))
    key_biases = 3 * 2 + 1  # self-attention twice and cross-attention; gradient, online, momentum
    compared = int(re.search(r"other_sizes: (\d+) compared", printed).group(1))
    assert compared >= recorded - 3 * key_biases


@pytest.mark.slow
def test_wrong_values_are_misses(monkeypatch, capsys, other_case, tmp_path):
    """Each by little more than its limit; a NaN, a shape and a name too."""
    case = shutil.copytree(other_case, tmp_path / "wrong")
    weight, bias = "visual_encoder.blocks.0.mlp.fc1.weight", "itm_head.bias"

    def change(file, **changes):
        arrays = dict(np.load(case / f"{file}.npz"))
        for name, function in changes.items():
            arrays[name] = function(arrays[name])
        np.savez(case / f"{file}.npz", **arrays)

    def off_by(share):
        def function(x):
            x = np.array(x)
            x.flat[0] += share * np.abs(x).max()
            return x
        return function

    change("outputs", loss_ita=off_by(2e-5), text_feat=off_by(2e-5),
           sim_t2i=lambda x: x[:, 1:], itm_logits=lambda x: np.where(x == x[0, 0], np.nan, x))
    change("grads", **{weight: off_by(6e-5)})
    change("state_after", queue_ptr=lambda x: x - 1, **{"text_proj_m.weight": off_by(2e-5)})
    arrays = dict(np.load(case / "grads.npz"))
    np.savez(case / "grads.npz", unknown=arrays.pop(bias), **arrays)
    code, printed = run(monkeypatch, capsys, case)
    assert code == 1
    assert set(misses(printed)) == {
        "loss_ita", "step losses[ita]", "text_feat", "itm_logits", f"grad {weight}",
        "after queue_ptr", "after text_proj_m.weight"}
    for name in ("sim_t2i", "grad unknown"):
        assert re.search(rf"^{name} .*SHAPE", printed, re.MULTILINE)
    assert "wrong: " in printed and "9 missed" in printed


def test_nothing_compared_is_not_a_pass(monkeypatch, capsys, tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    assert run(monkeypatch, capsys, tmp_path)[0] == 2
    np.savez(tmp_path / "inputs.npz", question_ids=np.zeros(3))
    code, printed = run(monkeypatch, capsys, tmp_path)
    assert code == 2 and "nothing was compared" in printed and "0 compared" in printed
