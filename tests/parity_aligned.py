"""What the cases of pre-training and of retrieval share: the arrays of ITC and ITM."""

import jax.numpy as jnp
import numpy as np

from albef_jax.objectives import matching
from albef_jax.objectives.distillation import soft_cross_entropy
from parity_case import first_group
from parity_report import EXACT, LOSS, OUTPUT

TEMPERATURE = 0.3  # unlike any recorded one, which are those of fresh models


def named_outputs(case, params, record, memory):
    """The arrays of outputs.npz that ITC and ITM have, from the record of one group."""
    r = first_group(record)
    on, mo, itc = r["online"], r["momentum"], r["itc"]
    b = len(on["text"])
    logits, states = r["itm"]["logits"], r["fused"]["itm_sbd"]

    def rows(sets):  # ours: match, other text, other image; recorded: match, image, text
        return np.concatenate([sets[0], sets[2], sets[1]])

    mask = jnp.asarray(case.batch()["text_mask"])

    def fuse(text_bld, mask_bl, image_bnd):
        return np.asarray(case.task.model.apply(
            {"params": params}, text_bld[None], mask_bl[None], image_bnd,
            method=lambda model, *args: model.text_encoder.fuse(*args))[0])

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
        report.check(name, ours[name], recorded,
                     EXACT if exact else LOSS if name.startswith("loss") else OUTPUT)


def check_temperature(case, report, params, forward):
    """Logits follow the temperature of the weights, which is not that of the config.

    Args:
      params: prepared parameters of the recorded forward. forward: of `Case.forward`.
    """
    *_, record = forward(case.state(temp=np.float32(TEMPERATURE)), 0.0)
    for way in ("i2t", "t2i"):
        if f"sim_{way}" in case.outputs:
            report.check(f"sim_{way} at another temperature",
                         first_group(record)["itc"][way] * TEMPERATURE,
                         case.outputs[f"sim_{way}"] * float(params["temp"]), OUTPUT)


def check_losses(report, name, parts, ours, recorded):
    """Compares losses by name; `parts` has their names on the last axis of both."""
    for part, mine, reference in zip(parts, np.moveaxis(ours, -1, 0),
                                     np.moveaxis(recorded, -1, 0), strict=True):
        report.check(f"{name}[{part}]", mine, reference, LOSS)


def stacked(metrics, *names):
    """Metrics on the last axis."""
    return np.stack([np.asarray(metrics[name]) for name in names], axis=-1)
