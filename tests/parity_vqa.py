"""The task `vqa` in tests/parity.py: distilled answers, and the ranking of candidates."""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.models.vqa import Vqa
from parity_case import answer_places, check_steps, first_group
from parity_report import EXACT, LOSS, OUTPUT


def run(case, report):
    """Compares one case by what it records; `report` is a `parity_report.Report`."""
    state, forward = case.state(), case.forward()
    params, teacher, losses, _, record = forward(state, case.inputs["alpha"])
    record = first_group(record)
    if case.outputs:
        undistilled = case.forward(case.make_task(alpha=0.0))
        ours = named_outputs(case, params, teacher, record) | {
            "loss": losses[0], "loss_f64": losses[0],
            "variant_alpha0_loss": forward(state, 0.0)[2][0],
            "variant_nodistill_loss": undistilled(state, 0.0)[2][0]}
        for name, recorded in case.outputs.items():
            report.check(name, ours[name], recorded, LOSS if "loss" in name else
                         EXACT if name == "answer_targets" else OUTPUT)
        metrics, _ = check_steps(case, report)
        report.check("step loss", metrics["loss"], case.outputs["loss"], LOSS)
    check_ranking(case, report, params, record["online"]["states"])


def named_outputs(case, params, teacher, record):
    """The arrays of outputs.npz but the losses of the batch."""
    batch, (row, slot) = case.batch(), answer_places(case.inputs)
    apply = Vqa(case.config.model).apply

    def words(params, states):
        return apply({"params": params}, states["hidden"][slot, row],
                     method=lambda model, x: model.text_decoder.predict_words(x))

    return {
        "image_embeds": apply({"params": params}, batch["image"],
                              method=lambda model, image: model.visual_encoder(image)),
        "question_states": record["online"]["states"],
        "question_states_m": record["momentum"]["states"],
        "answer_targets": np.where(batch["answer_mask"], batch["answer_ids"], -100)[row, slot],
        "decoder_logits": words(params, record["online"]),
        "decoder_logits_m_shifted": words(teacher, record["momentum"])[:, :-1],
        "per_answer_loss": record["losses_ab"][slot, row]}


def check_ranking(case, report, params, states):
    """Compares the scores of every recorded candidate, and which ones are chosen.

    Candidates with the same first word tie in it: which of them are among the first k, and in
    which order, is not compared.
    """
    recorded, mask = case.arrays("eval"), case.batch()["text_mask"]
    candidates = tuple(jnp.asarray(recorded[f"candidate_{name}"], jnp.int32)
                       for name in ("ids", "mask"))
    first_bc, best_bk = recorded["prob_first_token"], recorded["topk_ids"]

    def rank(k, first_twice):
        return jax.device_get(jax.jit(lambda: case.task.rank(
            params, states, mask, candidates, k, first_twice))())

    def all_scores(first_twice):
        chosen_bc, scores_bc = rank(len(candidates[0]), first_twice)
        return np.take_along_axis(scores_bc, np.argsort(chosen_bc), axis=1)

    twice_bc, once_bc = all_scores(True), all_scores(False)
    report.check("eval prob_first_token", np.exp(twice_bc - once_bc), first_bc, OUTPUT)
    sums_bk = recorded["log_probs_sum"]
    # Recorded by the first word; its candidates are named by the whole answer, `topk_ids`.
    places_bk = np.argsort(np.argsort(-sums_bk, kind="stable"), kind="stable")
    order_bk = np.take_along_axis(best_bk, places_bk, axis=1)
    falling_bk = np.take_along_axis(first_bc, order_bk, axis=1)
    report.check("eval order by the first word", falling_bk, -np.sort(-falling_bk), EXACT)
    report.check("eval log_probs_sum", np.take_along_axis(twice_bc, order_bk, axis=1), sums_bk,
                 OUTPUT)
    report.check("eval answer_loss", np.take_along_axis(-once_bc, order_bk, axis=1),
                 recorded["answer_loss"].reshape(sums_bk.shape), OUTPUT)
    best_scores_bk = np.take_along_axis(twice_bc, best_bk, axis=1)
    report.check("eval topk_ids, best first", best_scores_bk, -np.sort(-best_scores_bk), OUTPUT)
    report.check("eval topk_probs", jax.nn.softmax(best_scores_bk), recorded["topk_probs"],
                 OUTPUT)
    chosen_bk, scores_bk = rank(best_bk.shape[1], True)
    report.check("eval first words of our k", np.sort(
        np.take_along_axis(first_bc, chosen_bk, axis=1)), np.sort(falling_bk), OUTPUT)
    report.check("eval scores of our k", scores_bk, -np.sort(
        -np.take_along_axis(twice_bc, chosen_bk, axis=1)), OUTPUT)
