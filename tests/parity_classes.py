"""The cases `ve`, `nlvr` and `nlvr_pretrain` of tests/parity.py: tasks with classes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import parity

from albef_jax.objectives.distillation import ema
from albef_jax.parallel.mesh import replicated
from albef_jax.core.state import TrainState
from albef_jax.tasks import make_task
from albef_jax.tasks.text_assignment import AssignmentDraws
from albef_jax.weights import importer
from albef_jax.weights import report as imports
from albef_jax.weights.foreign.kinds import KINDS, sizes
from albef_jax.weights.foreign.salesforce import write_tensors
from albef_jax.weights.foreign.torch_file import read_tensors


class Case:
    """A case folder: its recordings, and a task with the imported weights."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.meta = json.loads((self.folder / "meta.json").read_text())
        self.kind = KINDS[self.meta.get("case", self.folder.name)]
        self.inputs, self.outputs = self.arrays("inputs"), self.arrays("outputs")
        torch_file = self.folder / "state_dict.pth"
        self.tensors = dict(read_tensors(torch_file) if torch_file.exists()
                            else self.arrays("state_dict"))
        c, found = self.meta["config"], sizes(self.tensors, self.kind, folder)
        config = importer.fitted_config(None, self.kind, *found, heads=0, path=folder)
        config.batch_size = config.group_size = c["batch"]
        config.model.update(vit_heads=c["vit_heads"], text_heads=c["bert_heads"], dtype="float32",
                            dropout=0.0, attention_dropout=0.0)
        config.objective.update(alpha=c["alpha"], alpha_ramp_steps=0, momentum=c["momentum"],
                                temperature=c["temp"])
        self.config = config.lock()
        self.task = make_task(self.config)

    def arrays(self, name):
        return dict(np.load(self.folder / f"{name}.npz"))

    def without_distillation(self):
        """The same task with `objective.alpha` 0."""
        config = self.config.copy_and_resolve_references().unlock()
        config.objective.alpha = 0.0
        return make_task(config)

    def state(self):
        """The imported state, whose optimizer keeps the gradients."""
        report = imports.Report(str(self.folder))
        leaves = importer.read_official(self.tensors, self.kind, self.config, report)
        tree = {"teacher": {}} | jax.tree.map(jnp.array, imports.unflatten(leaves))
        state = TrainState(step=jnp.zeros((), jnp.int32), memory={}, **tree,
                           opt_state=parity.record_gradients().init(tree["params"]))
        return jax.device_put(state, replicated(parity.mesh()))

    def batch(self):
        """Recorded inputs as a batch of ours."""
        images = [np.moveaxis(self.inputs[name], 1, -1)
                  for name in ("image", "image0", "image1") if name in self.inputs]
        ids = self.inputs["input_ids"].astype(np.int32)
        labels = self.inputs.get("targets", np.zeros(len(ids))).astype(np.int32)
        return {"image": images[0] if len(images) == 1 else np.stack(images, axis=1),
                "text_ids": ids, "text_mask": self.inputs["attention_mask"].astype(np.int32),
                "image_id": np.arange(len(ids), dtype=np.int32), "label": labels}

    def draws(self):
        """Recorded random choices, with a leading axis of one group; None if nothing is drawn."""
        names = ("image0_idx", "image1_idx", "labels")
        if names[0] not in self.inputs:
            return None
        return AssignmentDraws(*(jnp.asarray(self.inputs[name], jnp.int32)[None]
                                 for name in names))


def run(case_dir, report):
    """Compares one case; `report` is a `parity.Report`."""
    case = Case(case_dir)
    state, batch, draws = case.state(), case.batch(), case.draws()
    params = case.task.prepare(state.params)
    teacher = ema(state.teacher, case.task.teacher_of(params), case.config.objective.momentum)

    def loss(task, alpha):
        drawn = jax.tree.map(lambda x: x[0], draws)
        total, aux = jax.jit(lambda: task.loss(
            params, teacher, {}, batch, jax.random.key(0), {"alpha": jnp.float32(alpha)},
            drawn))()
        return total, aux.record

    total, record = loss(case.task, case.config.objective.alpha)
    named = assignment_outputs if case.kind.name == "nlvr_pretrain" else class_outputs
    ours = {"loss": total, "loss_f64": total} | named(case, params, batch, record)
    if "variant_alpha0_loss" in case.outputs:
        ours["variant_alpha0_loss"] = loss(case.task, 0.0)[0]
        ours["variant_nodistill_loss"] = loss(case.without_distillation(), 0.0)[0]
    for name, recorded in case.outputs.items():
        if name == "weights":  # recorded with a zero diagonal, not renormalised
            recorded = recorded / recorded.sum(axis=-1, keepdims=True)
        report.check(name, ours[name], recorded,
                     parity.LOSS if "loss" in name else parity.OUTPUT)

    after, metrics = parity.make_step(case, case.task, parity.record_gradients())(
        state, batch, draws)
    report.check("step loss", metrics["loss"], case.outputs["loss"], parity.LOSS)
    grads = write_tensors(case.kind.params_table(case.config.model), after.opt_state,
                          case.config.model.patch_size)
    recorded = case.arrays("grads")
    parity.check_tensors(report, "grad ", grads, recorded, parity.GRADIENT)
    for name in grads.keys() - recorded.keys():
        if name not in case.kind.tied(case.config.model):
            report.check(f"no grad {name}", grads[name], 0 * grads[name], parity.EXACT)


def class_outputs(case, params, batch, record):
    """The arrays of outputs.npz but losses, of `ve` and `nlvr`."""
    texts = batch["text_ids"], batch["text_mask"]
    classify = jax.jit(case.task.predict_fns()["classify"])
    module = case.kind.module(case.config.model)
    pictures = case.task.images(batch["image"])

    def states(model, pictures, ids, mask):
        """Image tokens of each picture, and all states of the text."""
        images = [model.visual_encoder(picture) for picture in pictures]
        text = model.text_encoder.encode(ids, mask)
        if case.kind.pairs:
            return images, model.text_encoder.fuse_pairs(text, mask, *images)
        return images, model.text_encoder.fuse(text[None], mask[None], *images)[0]

    images, text = module.apply({"params": params}, pictures, *map(jnp.asarray, texts),
                                method=states)
    ours = {"prediction": record["logits"], "prediction_m": record["teacher_logits"],
            "prediction_eval": classify(params, batch["image"], *texts),
            "image_embeds": images[0], "text_hidden": text, "hidden_state": text[:, 0]}
    if case.kind.pairs:
        ours["prediction_eval_swapped"] = classify(params, batch["image"][:, ::-1], *texts)
    return ours


def assignment_outputs(case, params, batch, record):
    """The arrays of outputs.npz but the loss, of `nlvr_pretrain`."""
    mask = jnp.asarray(batch["text_mask"])
    first, second = (record["image"][case.inputs[name]] for name in ("image0_idx", "image1_idx"))
    hidden = case.kind.module(case.config.model).apply(
        {"params": params}, record["text"], mask, first, second,
        method=lambda model, *args: model.text_encoder.fuse_pairs(*args))
    return {"pred": record["logits"], "image_feat": record["image_feat"],
            "sim": record["similarity"], "weights": record["weights"], "text_hidden": hidden}
