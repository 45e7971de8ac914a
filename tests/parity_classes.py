"""The tasks `ve`, `nlvr` and `nlvr_pretrain` in tests/parity.py: they tell classes apart."""

import jax
import jax.numpy as jnp
import numpy as np

from parity_case import check_steps, first_group
from parity_report import LOSS, OUTPUT


def run(case, report):
    """Compares one case; `report` is a `parity_report.Report`."""
    assigns = case.kind.name == "nlvr_pretrain"
    if assigns:  # it divides by 0.07, whatever temperature the weights bring
        case.tensors["temp"] = np.float32(0.3)
    state, forward = case.state(), case.forward()
    params, _, losses, _, record = forward(state, case.inputs.get("alpha", 0.0))
    ours = {"loss": losses[0], "loss_f64": losses[0]} | (
        assignment_outputs if assigns else class_outputs)(case, params, first_group(record))
    if "variant_alpha0_loss" in case.outputs:
        ours["variant_alpha0_loss"] = forward(state, 0.0)[2][0]
        undistilled = case.forward(case.make_task(alpha=0.0))
        ours["variant_nodistill_loss"] = undistilled(state, 0.0)[2][0]
    for name, recorded in case.outputs.items():
        if name == "weights":  # recorded with a zero diagonal, not renormalised
            recorded = recorded / recorded.sum(axis=-1, keepdims=True)
        report.check(name, ours[name], recorded, LOSS if "loss" in name else OUTPUT)
    metrics, _ = check_steps(case, report)
    report.check("step loss", metrics["loss"], case.outputs["loss"], LOSS)


def class_outputs(case, params, record):
    """The arrays of outputs.npz but losses, of `ve` and `nlvr`."""
    batch = case.batch()
    texts = batch["text_ids"], batch["text_mask"]
    classify = jax.jit(case.task.predict_fns()["classify"])
    module = case.task.model
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


def assignment_outputs(case, params, record):
    """The arrays of outputs.npz but the loss, of `nlvr_pretrain`."""
    mask = jnp.asarray(case.batch()["text_mask"])
    first, second = (record["image"][case.inputs[name]] for name in ("image0_idx", "image1_idx"))
    hidden = case.task.model.apply(
        {"params": params}, record["text"], mask, first, second,
        method=lambda model, *args: model.text_encoder.fuse_pairs(*args))
    return {"pred": record["logits"], "image_feat": record["image_feat"],
            "sim": record["similarity"], "weights": record["weights"], "text_hidden": hidden}
