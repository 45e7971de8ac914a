"""Retrieval and grounding in tests/parity.py."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.evaluators import grounding, recall
from albef_jax.models.resample import upsample
from albef_jax.objectives import contrastive
from parity_aligned import (
    TEMPERATURE, check_losses, check_outputs, check_temperature, named_outputs, stacked)
from parity_case import check_steps, check_tensors
from parity_report import EXACT, OUTPUT, STATE, Limit

WAYS = (("i2t", "txt"), ("t2i", "img"))  # ours, and the names of the recorded recalls
PARTS, METRICS = ("ita", "itm"), ("itc", "itm")  # the recordings' order, and ours
COUNTED = Limit("counted", 1e-12, "own")  # shares of counts, equal up to the last bit


def run(case, report):
    """Compares one case; `report` is a `parity_report.Report`."""
    if "idx" in case.inputs:
        run_step(case, report)
        run_evaluation(case, report)
    else:
        run_heat(case, report)
        run_boxes(case, report)


def run_step(case, report):
    """One forward and backward: every recorded intermediate, gradient and state."""
    outputs, state, forward = case.outputs, case.state(), case.forward()
    params, _, _, metrics, record = forward(state, case.inputs["alpha"])
    losses, ids = stacked(metrics, *METRICS)[0], case.batch()["image_id"]
    positives = np.asarray(contrastive.image_positives(ids, state.memory["id_queue"]))
    ids = np.concatenate([ids, state.memory["id_queue"]])
    check_outputs(report, named_outputs(case, params, record, state.memory) | {
        "idx_all": np.where(ids == -1, -100, ids)[None], "pos_idx": positives,
        "sim_targets": positives / positives.sum(axis=1, keepdims=True),
        "losses_f64": losses}, outputs)
    undistilled = stacked(forward(state, 0.0)[3], *METRICS)[0]
    for name in ("variant_alpha0_losses", "variant_nodistill_losses"):
        check_losses(report, name, PARTS, undistilled, outputs[name])
    check_temperature(case, report, params, forward)

    metrics, after = check_steps(case, report)
    check_losses(report, "step losses", PARTS, stacked(metrics, *METRICS),
                 stacked(outputs, *(f"loss_{part}" for part in PARTS)))
    check_tensors(report, "after ", after, case.arrays("state_after"), STATE)


def run_evaluation(case, report):
    """Features, similarities, re-ranked scores and recalls, as the evaluator makes them.

    None of it depends on the temperature.
    """
    arrays, meta, functions = case.arrays("eval"), case.meta["eval"], case.task.predict_fns()
    k, params = int(arrays["k"]), case.state(temp=np.float32(TEMPERATURE)).params
    mask = jnp.asarray(arrays["attention_mask"], jnp.int32)
    image, image_feat = jax.jit(functions["encode_image"])(
        params, jnp.moveaxis(arrays["image"], 1, -1))
    text, text_feat = jax.jit(functions["encode_text"])(
        params, jnp.asarray(arrays["input_ids"], jnp.int32), mask)
    sims = np.asarray(image_feat @ text_feat.T)
    n, m = sims.shape
    match = jax.jit(jax.vmap(functions["match"], (None, None, 1, 1), 1))(
        params, image, jnp.tile(text, (n, 1, 1, 1)), jnp.tile(mask, (n, 1, 1)))[..., 1]
    scores = {
        "score_i2t": np.where(recall.candidates(sims, k), match, recall.UNSCORED),
        "score_t2i": np.where(recall.candidates(sims.T, k), match.T, recall.UNSCORED)}
    for name, ours in {"image_embed": image_feat, "text_embed": text_feat,
                       "sims_i2t": sims}.items():
        report.check(f"eval {name}", ours, arrays[name], OUTPUT)
    for name, ours in scores.items():
        scored = arrays[name] != recall.UNSCORED
        report.check(f"eval {name}, which", ours != recall.UNSCORED, scored, EXACT)
        report.check(f"eval {name}", ours[scored], arrays[name][scored], OUTPUT)
    text_image = np.array([meta["txt2img"][str(text)] for text in range(m)])
    check_recalls(report, "recorded", (arrays["score_i2t"], arrays["score_t2i"]), text_image,
                  meta["metrics"])
    check_recalls(report, "own", scores.values(), text_image, meta["metrics"])
    large = arrays["itm_eval_scores_i2t"], arrays["itm_eval_scores_t2i"]
    n, m = large[0].shape
    check_recalls(report, "large", large, np.arange(m) // (m // n),
                  meta["itm_eval_large"]["metrics"])


def check_recalls(report, what, scores, text_image, recorded):
    """Recalls of score matrices."""
    ours = recall.recalls(*scores, text_image)
    for way, theirs in WAYS:
        depths = [ours[f"{way}_r{depth}"] for depth in recall.DEPTHS]
        ours[f"{way}_r_mean"] = np.mean(depths)
        for end in (*(f"r{depth}" for depth in recall.DEPTHS), "r_mean"):
            report.check(f"{what} scores, {theirs}_{end}", ours[f"{way}_{end}"],
                         recorded[f"{theirs}_{end}"], COUNTED)
    report.check(f"{what} scores, r_mean", ours["r_mean"], recorded["r_mean"], COUNTED)


def run_heat(case, report):
    """Heat maps of every recorded fusion layer and ViT block, in both modes.

    At another temperature: similarities, and heat that comes from their gradient, follow it.
    """
    outputs, batch, functions = case.outputs, case.batch(), case.task.predict_fns()
    rows = (case.state(temp=np.float32(TEMPERATURE)).params,
            *(batch[name] for name in ("image", "text_ids", "text_mask")))
    colder = TEMPERATURE / case.tensors["temp"]
    names = sorted(filter(re.compile(r"it[mc]_block\d+").fullmatch, outputs))
    for name in names:
        way, number = name.split("_block")
        layer, heat = int(number), functions[f"{way}_heat"]
        whole, option = grounding.text_heat(heat, way, layer), {
            "itm": "layer", "itc": "block"}[way]
        ours, *parts, logits = jax.jit(
            lambda *rows: (whole(*rows), *heat(*rows, **{option: layer})))(*rows)
        if way == "itm":
            per_token = outputs[f"{name}_cams"] * outputs[f"{name}_grads_clamped"]
            report.check(name, ours, outputs[name], OUTPUT)
            report.check(f"{name} per token", parts[0], per_token.mean(axis=1), OUTPUT)
            report.check(f"{name} itm_logits", logits, outputs["itm_logits"], OUTPUT)
        else:
            report.check(name, ours * colder, outputs[name], OUTPUT)
            report.check(f"{name} itc_sim", logits * colder, np.diag(outputs["itc_sim"]), OUTPUT)


def run_boxes(case, report):
    """Enlarged maps, the proposals they choose, overlaps and accuracy."""
    outputs, meta = case.outputs, case.meta["boxrank"]
    boxes, right = outputs["boxrank_boxes"], []
    for row, heat in enumerate(outputs["boxrank_heat"]):
        enlarged = upsample(heat, meta["height"], meta["width"])
        report.check(f"boxrank_upsampled[{row}]", enlarged, outputs["boxrank_upsampled"][row],
                     OUTPUT)
        best = grounding.best_proposal(enlarged, boxes[row])
        report.check(f"boxrank_chosen[{row}]", best, boxes[row][outputs["boxrank_chosen"][row]],
                     EXACT)
        right.append(grounding.iou(outputs["boxrank_gt"][row], best) >= grounding.MATCHED)
    splits = np.array(meta["splits"])
    for name, accuracy in meta["accuracy"].items():
        ours = np.mean(np.array(right)[splits == name.removesuffix("_d")])
        report.check(f"accuracy {name}", ours, accuracy, EXACT)
    report.check("iou", [grounding.iou(*pair) for pair in outputs["iou_pairs"]], outputs["iou"],
                 OUTPUT)
