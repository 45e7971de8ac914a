"""Compares this project with values recorded from the public PyTorch code.

    python tests/parity.py CASE_DIR [CASE_DIR ...]

The comparisons of each task are in the file that RUNNERS names.

A case folder holds meta.json, inputs.npz and recorded outputs (losses, features, gradients,
states), all under the official names and layouts. Recorded random draws are injected; model,
objectives and step are those that train, and the initial weights (`state_dict.pth`, or `.npz`
where there is none) come in as `albef import` reads them. One line per compared array: its name,
the largest difference relative to the largest entry of the recording, the limit, and whether it
holds. Exits with 1 on a miss, and with 2 when nothing was compared.
"""

import argparse
import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from albef_jax.parallel import mesh as sharding
from albef_jax.core import step
from albef_jax.models.albef import Albef
from albef_jax.objectives import masking, matching
from albef_jax.objectives.distillation import ema, soft_cross_entropy
from albef_jax.core.state import TrainState
from albef_jax.tasks import make_task, pretrain
from albef_jax.weights import importer
from albef_jax.weights.foreign import salesforce
from albef_jax.weights import report as imports
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.torch_file import read_tensors

# Case (its meta.json's "case", else the folder's name) -> file with `run(case_dir, report)`.
RUNNERS = {"retrieval": "parity_retrieval", "grounding": "parity_retrieval", "vqa": "parity_vqa",
           "ve": "parity_classes", "nlvr": "parity_classes", "nlvr_pretrain": "parity_classes"}
# Limits of the recordings' README, section Tolerances; not to be relaxed silently.
OUTPUT, LOSS, GRADIENT, GRAD_NORM, STATE, TRAINED, EXACT = (
    5e-6, 5e-6, 2e-5, 1e-5, 2e-6, 3e-5, 0.0)


class Report:
    """Prints one line per comparison and counts the misses."""

    def __init__(self):
        self.compared, self.missed = 0, 0

    def check(self, name, ours, recorded, limit):
        """Compares two arrays; an error of shape or a NaN is a miss."""
        ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        scale = max(np.max(np.abs(recorded), initial=0.0), np.finfo(np.float32).tiny)
        same_shape = ours.shape == recorded.shape
        error = np.max(np.abs(ours - recorded), initial=0.0) / scale if same_shape else np.nan
        good = bool(error <= limit)
        note = "ok" if good else "MISS" if same_shape else f"SHAPE {ours.shape} {recorded.shape}"
        print(f"{name:85s} error {error:.2e}  limit {limit:.0e}  {note}")
        self.compared += 1
        self.missed += not good


class Case:
    """A case folder: sizes, inputs, recordings and the initial state in our layout."""

    def __init__(self, folder, kind="pretrain"):
        self.folder, self.kind = pathlib.Path(folder), KINDS[kind]
        self.meta = json.loads((self.folder / "meta.json").read_text())
        self.inputs = self.arrays("inputs")
        place = self.meta.get("initial_state", self.meta.get("state", "state_dict.npz"))
        named = self.folder / place.split()[0]
        torch_file = named.with_suffix(".pth")
        self.tensors = dict(read_tensors(torch_file) if torch_file.exists() else np.load(named))
        replaced = {k: v for k, v in self.inputs.items() if k in self.tensors}
        self.tensors.update(replaced)
        self.config = self._config()

    def arrays(self, name):
        """The npz of that name as a dict, empty when the case has none."""
        path = self.folder / f"{name}.npz"
        return dict(np.load(path)) if path.exists() else {}

    def _config(self):
        c, special = self.meta["config"], self.meta.get("special_tokens", {})
        fc1 = self.tensors["visual_encoder.blocks.0.mlp.fc1.weight"]
        length = self.inputs["input_ids"].shape[-1]
        return ml_collections.ConfigDict(dict(
            task=self.kind.name,
            batch_size=c["batch"] * self.meta.get("world_size", 1), group_size=c["batch"],
            model=dict(
                image_size=c["image_res"], patch_size=c["patch"], vit_width=c["vit_dim"],
                vit_depth=c["vit_depth"], vit_heads=c["vit_heads"],
                vit_mlp_ratio=fc1.shape[0] / fc1.shape[1], text_width=c["bert_dim"],
                text_layers=c["fusion_layer"],
                fusion_layers=c["bert_layers"] - c["fusion_layer"],
                text_heads=c["bert_heads"], text_mlp_width=c["bert_inter"],
                vocab_size=c["vocab"], max_positions=c["max_pos"], embed_dim=c["embed_dim"],
                dropout=0.0, attention_dropout=0.0, dtype="float32", init_std=0.02,
                pad_id=special.get("pad", 0), cls_id=special.get("cls", 2),
                mask_id=special.get("mask", 4)),
            objective=dict(
                temperature=c["temp"], queue_size=c["queue_size"], momentum=c["momentum"],
                alpha_itc=c["alpha"], alpha_mlm=c["alpha"], alpha_ramp_steps=0, itc=True,
                negatives="hard", positives="pair", mask_rate=c["mlm_probability"],
                mask_replace=(0.8, 0.1, 0.1), mlm_budget=c["batch"] * length)))

    def task(self, alphas):
        """The task, with recorded weights of the teacher per step."""
        task = make_task(self.config)
        alphas = jnp.atleast_1d(jnp.asarray(alphas, jnp.float32))
        task.schedule = lambda i: {"alpha_itc": alphas[i], "alpha_mlm": alphas[i]}
        return task

    def state(self, optimizer, temperature=None):
        """The imported initial state; a fresh copy each time, because steps donate it."""
        report = imports.Report(str(self.folder))
        leaves = importer.read_official(self.tensors, self.kind, self.config, report)
        if temperature is not None:
            leaves["params", "temp"] = np.float32(temperature)
        tree = jax.tree.map(jnp.array, imports.unflatten(leaves))
        state = TrainState(step=jnp.zeros((), jnp.int32),
                           opt_state=optimizer.init(tree["params"]), **tree)
        return jax.device_put(state, sharding.replicated(mesh()))

    def batch(self, index=...):
        """Recorded inputs as a batch of ours (channels last)."""
        image = self.inputs["image"][index]
        ids = np.asarray(self.inputs["input_ids"][index], np.int32)
        mask = np.asarray(self.inputs["attention_mask"][index], np.int32)
        batch = {"image": np.moveaxis(image, -3, -1), "text_ids": ids, "text_mask": mask}
        if "idx" in self.inputs:
            batch["image_id"] = np.asarray(self.inputs["idx"], np.int32)
        return batch

    def draws(self, groups, index=...):
        """Recorded random choices, with a leading axis of `groups`."""
        def take(name, dtype):
            x = self.inputs[name][index]
            return jnp.asarray(x.reshape(groups, self.config.group_size, *x.shape[
                x.ndim - (1 if name.startswith("neg") else 2) + 1:]), dtype)

        chosen, replaced, randomised = (
            take(f"{name}_draw", bool) for name in ("mask", "replace", "random"))
        return pretrain.PretrainDraws(
            masking.MaskingDraws(chosen, replaced, randomised, take("random_words", jnp.int32)),
            take("neg_image_idx", jnp.int32), take("neg_text_idx", jnp.int32))

    def official(self, params):
        """Parameters, or something of their shape, under official names."""
        return salesforce.write_tensors(self.kind.params_table(self.config.model), params,
                                        self.config.model.patch_size)

    def official_state(self, params, teacher, memory):
        """Parameters, momentum copies and queues under official names, and their second names."""
        tree = {"params": params, "teacher": teacher, "memory": memory}
        tensors = salesforce.write_tensors(self.kind.table(self.config),
                                           jax.tree.map(np.asarray, tree),
                                           self.config.model.patch_size)
        return add_tied(tensors)


def record_gradients():
    """An optimizer that changes nothing and keeps the gradients as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, _, params: (jax.tree.map(jnp.zeros_like, grads), grads))


def mesh():
    """One device of this process, however many there are."""
    return sharding.make_mesh(devices=jax.local_devices()[:1])


def make_step(case, task, optimizer):
    """The training step, as the loop builds it."""
    return step.make_train_step(
        task, optimizer, mesh(), seed=0,
        group_size=case.config.group_size, momentum=case.config.objective.momentum)


def loss_records(case):
    """A compiled `run(state, draws, alpha)`: the task's own loss on the recorded batch.

    It returns parameters, teacher, metrics and intermediates, the last two `[groups, ...]`.
    """
    task = make_task(case.config)
    groups = step.split_groups(case.batch(), case.config.group_size)

    @jax.jit
    def run(state, draws, alpha):
        params = task.prepare(state.params)
        teacher = ema(state.teacher, task.teacher_of(params), case.config.objective.momentum)
        schedule = {"alpha_itc": alpha, "alpha_mlm": alpha}
        aux = jax.vmap(lambda group, drawn: task.loss(
            params, teacher, state.memory, group, jax.random.key(0), schedule, drawn)[1])(
                groups, draws)
        return params, teacher, aux.metrics, aux.record

    return lambda state, draws, alpha: run(state, draws, jnp.float32(alpha))


def without_key_bias(name, tensor):
    """Leaves out attention key biases: their gradient is zero but for rounding."""
    if name.endswith("attn.qkv.bias"):
        first, _, last = np.split(tensor, 3)
        return np.concatenate([first, last])
    return None if name.endswith(".key.bias") else tensor


def check_tensors(report, prefix, ours, recorded, limit):
    """Compares every recorded parameter-like tensor; a name we do not have is a miss."""
    for name, reference in recorded.items():
        reference = without_key_bias(name, reference)
        if reference is not None and not name.endswith("position_ids"):
            mine = without_key_bias(name, ours[name]) if name in ours else np.zeros(0)
            report.check(f"{prefix}{name}", mine, reference, limit)


def add_tied(tensors):
    """Adds the public code's second names of the MLM decoder."""
    for part in ("text_encoder", "text_encoder_m"):
        words = f"{part}.bert.embeddings.word_embeddings.weight"
        if words in tensors:
            tensors[f"{part}.cls.predictions.decoder.weight"] = tensors[words]
            tensors[f"{part}.cls.predictions.decoder.bias"] = tensors[
                f"{part}.cls.predictions.bias"]
    return tensors


def first_group(record):
    return jax.tree.map(lambda x: np.asarray(x[0]), record)


def named_outputs(case, params, record, memory, batch):
    """The arrays of outputs.npz that ITC and ITM have, from the record of one group."""
    r = first_group(record)
    on, mo, itc = r["online"], r["momentum"], r["itc"]
    b = len(on["text"])
    logits, states = r["itm"]["logits"], r["fused"]["itm_sbd"]

    def rows(sets):  # ours: match, other text, other image; recorded: match, image, text
        return np.concatenate([sets[0], sets[2], sets[1]])

    mask = jnp.asarray(batch["text_mask"])

    def fuse(text_bld, mask_bl, image_bnd):
        return np.asarray(case.kind.module(case.config.model).apply(
            {"params": params}, text_bld[None], mask_bl[None], image_bnd, method=Albef.fuse)[0])

    other_text, other_image = r["negatives"]["text"], r["negatives"]["image"]
    temperature = np.asarray(params["temp"])
    all_image = np.concatenate([mo["image_feat"], memory["image_queue"]])
    all_text = np.concatenate([mo["text_feat"], memory["text_queue"]])
    i2t_loss = soft_cross_entropy(itc["i2t"], itc["i2t_targets"]).mean()
    t2i_loss = soft_cross_entropy(itc["t2i"], itc["t2i_targets"]).mean()
    return {
        "image_embeds": on["image"], "text_embeds": on["text"],
        "image_feat": on["image_feat"], "text_feat": on["text_feat"],
        "image_embeds_m": mo["image"], "text_embeds_m": mo["text"],
        "image_feat_m": mo["image_feat"], "text_feat_m": mo["text_feat"],
        "image_feat_all": all_image.T, "text_feat_all": all_text.T,
        "sim_i2t": itc["i2t"], "sim_t2i": itc["t2i"],
        "sim_i2t_m": mo["image_feat"] @ all_text.T / temperature,
        "sim_t2i_m": mo["text_feat"] @ all_image.T / temperature,
        "sim_i2t_targets": itc["i2t_targets"], "sim_t2i_targets": itc["t2i_targets"],
        "loss_i2t": i2t_loss, "loss_t2i": t2i_loss, "loss_ita": itc["loss"],
        "loss_itm": r["itm"]["loss"],
        "weights_i2t": matching.negative_probabilities(itc["i2t"][:, :b], itc["positives_bb"]),
        "weights_t2i": matching.negative_probabilities(itc["t2i"][:, :b], itc["positives_bb"]),
        "fusion_pos": fuse(on["text"], mask, on["image"]),
        "fusion_neg": np.concatenate([
            fuse(on["text"], mask, on["image"][other_image]),
            fuse(on["text"][other_text], mask[other_text], on["image"])]),
        "vl_embeddings": rows(states), "itm_logits": rows(logits),
        "itm_labels": np.repeat([1, 0, 0], b)}


def check_outputs(report, ours, outputs):
    """Compares the arrays of outputs.npz, without those of the variants."""
    for name, recorded in outputs.items():
        if name.startswith("variant_"):
            continue
        if name.startswith("weights_"):  # recorded with zeros at positives, not renormalised
            recorded = recorded / recorded.sum(axis=-1, keepdims=True)
        exact = name.startswith(("itm_labels", "idx", "pos_idx"))
        limit = EXACT if exact else LOSS if name.startswith("loss") else OUTPUT
        report.check(name, ours[name], recorded, limit)


def run_case(folder):
    """Runs one case folder; returns its Report."""
    report, folder = Report(), pathlib.Path(folder)
    meta = json.loads((folder / "meta.json").read_text())
    inputs = folder / "inputs.npz"
    runner = RUNNERS.get(meta.get("case", folder.name))
    if runner is None and inputs.exists() and "mask_draw" in np.load(inputs):
        runner = "parity_pretrain"
    if runner is not None:
        importlib.import_module(runner).run(folder, report)
    print(f"{folder.name}: {report.compared} compared, {report.missed} missed")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case_dir", nargs="+")
    jax.config.update("jax_default_matmul_precision", "highest")
    reports = [run_case(folder) for folder in parser.parse_args().case_dir]
    if any(report.compared == 0 for report in reports):
        print("nothing was compared: no comparison fits this case")
        sys.exit(2)
    sys.exit(1 if any(report.missed for report in reports) else 0)


if __name__ == "__main__":
    main()
