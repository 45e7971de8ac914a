"""The cases `retrieval` and `grounding` of tests/parity.py."""

import jax
import jax.numpy as jnp
import numpy as np
import parity

from albef_jax.evaluators import grounding, retrieval
from albef_jax.objectives import contrastive
from albef_jax.tasks.retrieval import RetrievalDraws
from albef_jax.models.resample import upsample

WAYS = (("i2t", "txt"), ("t2i", "img"))  # ours, and the names of the recorded recalls


def run(case_dir, report):
    """Compares one case; `report` is a `parity.Report`."""
    case = parity.Case(case_dir, "retrieval")
    if "idx" in case.inputs:
        run_step(case, report)
        run_evaluation(case, report)
    else:
        run_heat(case, report)
        run_boxes(case, report)


def run_step(case, report):
    """One forward and backward: every recorded intermediate, gradient and state."""
    outputs, optimizer = case.arrays("outputs"), parity.record_gradients()
    batch, draws = case.batch(), RetrievalDraws(*(
        jnp.asarray(case.inputs[name], jnp.int32)[None]
        for name in ("neg_image_idx", "neg_text_idx")))
    state, records = case.state(optimizer), parity.loss_records(case)
    memory = jax.tree.map(np.asarray, state.memory)
    params, _, metrics, record = records(state, draws, case.inputs["alpha"])
    losses = loss_pair(metrics)[0]
    positives = np.asarray(contrastive.image_positives(batch["image_id"], memory["id_queue"]))
    ids = np.concatenate([batch["image_id"], memory["id_queue"]])
    parity.check_outputs(report, parity.named_outputs(case, params, record, memory, batch) | {
        "idx_all": np.where(ids == -1, -100, ids)[None], "pos_idx": positives,
        "sim_targets": positives / positives.sum(axis=1, keepdims=True),
        "losses_f64": losses}, outputs)
    undistilled = loss_pair(records(case.state(optimizer), draws, 0.0)[2])[0]
    for name in ("variant_alpha0_losses", "variant_nodistill_losses"):
        check_pair(report, name, undistilled, outputs[name])

    task = case.task(case.inputs["alpha"])
    after, metrics = parity.make_step(case, task, optimizer)(state, batch, draws)
    check_pair(report, "step losses", loss_pair(metrics),
               np.stack([outputs["loss_ita"], outputs["loss_itm"]]))
    parity.check_tensors(report, "grad ", case.official(after.opt_state), case.arrays("grads"),
                         parity.GRADIENT)
    final = case.official_state(after.params, after.teacher, after.memory)
    for name, recorded in case.arrays("state_after").items():
        exact = name in ("idx_queue", "queue_ptr")
        report.check(f"after {name}", final[name], recorded, parity.EXACT if exact else
                     parity.STATE)


def loss_pair(metrics):
    """(ita, itm), the order of the recordings, on the last axis."""
    return np.stack([np.asarray(metrics[name]) for name in ("itc", "itm")], axis=-1)


def check_pair(report, name, ours, recorded):
    for part, mine, reference in zip(("ita", "itm"), ours, recorded):
        report.check(f"{name}[{part}]", mine, reference, parity.LOSS)


def run_evaluation(case, report):
    """Features, similarities, re-ranked scores and recalls, as the evaluator makes them."""
    arrays, meta = case.arrays("eval"), case.meta["eval"]
    k, task = int(arrays["k"]), case.task(0.0)
    functions, params = task.predict_fns(), case.state(parity.record_gradients()).params
    mask = jnp.asarray(arrays["attention_mask"], jnp.int32)
    image, image_feat = jax.jit(functions["encode_image"])(
        params, jnp.moveaxis(arrays["image"], 1, -1))
    text, text_feat = jax.jit(functions["encode_text"])(
        params, jnp.asarray(arrays["input_ids"], jnp.int32), mask)
    sims = np.asarray(image_feat @ text_feat.T)
    n, m = sims.shape
    match = jax.jit(retrieval.match_logits(functions["match"]))(
        params, image, jnp.tile(text, (n, 1, 1, 1)), jnp.tile(mask, (n, 1, 1)))[..., 1]
    scores = {
        "score_i2t": np.where(retrieval.candidates(sims, k), match, retrieval.UNSCORED),
        "score_t2i": np.where(retrieval.candidates(sims.T, k), match.T, retrieval.UNSCORED)}
    for name, ours in {"image_embed": image_feat, "text_embed": text_feat,
                       "sims_i2t": sims}.items():
        report.check(f"eval {name}", ours, arrays[name], parity.OUTPUT)
    for name, ours in scores.items():
        scored = arrays[name] != retrieval.UNSCORED
        report.check(f"eval {name}, which", ours != retrieval.UNSCORED, scored, parity.EXACT)
        report.check(f"eval {name}", ours[scored], arrays[name][scored], parity.OUTPUT)
    text_image = np.array([meta["txt2img"][str(text)] for text in range(m)])
    check_recalls(report, "recorded", (arrays["score_i2t"], arrays["score_t2i"]), text_image,
                  meta["metrics"])
    check_recalls(report, "own", scores.values(), text_image, meta["metrics"])
    large = arrays["itm_eval_scores_i2t"], arrays["itm_eval_scores_t2i"]
    check_recalls(report, "large", large, np.arange(large[0].shape[1]) // 2,
                  meta["itm_eval_large"]["metrics"])


def check_recalls(report, what, scores, text_image, recorded):
    """Recalls of score matrices; they are shares of counts, equal up to the last bit."""
    ours = retrieval.recalls(*scores, text_image)
    for way, theirs in WAYS:
        depths = [ours[f"{way}_r{depth}"] for depth in retrieval.DEPTHS]
        ours[f"{way}_r_mean"] = np.mean(depths)
        for end in (*(f"r{depth}" for depth in retrieval.DEPTHS), "r_mean"):
            report.check(f"{what} scores, {theirs}_{end}", ours[f"{way}_{end}"],
                         recorded[f"{theirs}_{end}"], 1e-12)
    report.check(f"{what} scores, r_mean", ours["r_mean"], recorded["r_mean"], 1e-12)


def run_heat(case, report):
    """Heat maps of every fusion layer and every ViT block, in both modes."""
    outputs, batch = case.arrays("outputs"), case.batch()
    functions = case.task(0.0).predict_fns()
    rows = case.state(parity.record_gradients()).params, *batch.values()
    model = case.config.model
    for layer in range(model.text_layers, model.text_layers + model.fusion_layers):
        name, heat = f"itm_block{layer}", functions["itm_heat"]
        whole = grounding.text_heat(heat, "itm", layer)
        ours, tokens, logits = jax.jit(
            lambda *rows: (whole(*rows), *heat(*rows, layer=layer)))(*rows)
        report.check(name, ours, outputs[name], parity.OUTPUT)
        per_token = (outputs[f"{name}_cams"] * outputs[f"{name}_grads_clamped"]).mean(axis=1)
        report.check(f"{name} per token", tokens, per_token, parity.OUTPUT)
        report.check(f"{name} itm_logits", logits, outputs["itm_logits"], parity.OUTPUT)
    for block in range(model.vit_depth):
        name, heat = f"itc_block{block}", functions["itc_heat"]
        whole = grounding.text_heat(heat, "itc", block)
        ours, sims = jax.jit(
            lambda *rows: (whole(*rows), heat(*rows, block=block)[1]))(*rows)
        report.check(name, ours, outputs[name], parity.OUTPUT)
        report.check(f"{name} itc_sim", sims, np.diag(outputs["itc_sim"]), parity.OUTPUT)


def run_boxes(case, report):
    """Enlarged maps, the proposals they choose, overlaps and accuracy."""
    outputs, meta = case.arrays("outputs"), case.meta["boxrank"]
    boxes, right = outputs["boxrank_boxes"], []
    for row, heat in enumerate(outputs["boxrank_heat"]):
        enlarged = upsample(heat, meta["height"], meta["width"])
        report.check(f"boxrank_upsampled[{row}]", enlarged, outputs["boxrank_upsampled"][row],
                     parity.OUTPUT)
        best = grounding.best_proposal(enlarged, boxes[row])
        report.check(f"boxrank_chosen[{row}]", best, boxes[row][outputs["boxrank_chosen"][row]],
                     parity.EXACT)
        right.append(grounding.iou(outputs["boxrank_gt"][row], best) >= grounding.MATCHED)
    splits = np.array(meta["splits"])
    for name, accuracy in meta["accuracy"].items():
        ours = np.mean(np.array(right)[splits == name.removesuffix("_d")])
        report.check(f"accuracy {name}", ours, accuracy, parity.EXACT)
    report.check("iou", [grounding.iou(*pair) for pair in outputs["iou_pairs"]], outputs["iou"],
                 parity.OUTPUT)
