"""The case `vqa` of tests/parity.py: distilled answers, and the ranking of candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
from parity_classes import Case

from albef_jax.models.vqa import Vqa
from albef_jax.objectives.distillation import ema
from albef_jax.weights.foreign.salesforce import write_tensors


class VqaCase(Case):
    """A case folder whose batch has the recorded answers packed by question."""

    def batch(self):
        """Recorded inputs as a batch of ours; its slots that stay empty weigh 0."""
        row, slot = self.place()
        inputs, (b, most) = self.inputs, (len(self.inputs["k"]), self.inputs["k"].max())

        def packed(values, fill, dtype):
            array = np.full((b, most, *values.shape[1:]), fill, dtype)
            array[row, slot] = values
            return array

        return {"image": np.moveaxis(inputs["image"], 1, -1),
                "text_ids": inputs["question_ids"].astype(np.int32),
                "text_mask": inputs["question_mask"].astype(np.int32),
                "answer_ids": packed(inputs["answer_ids"], 0, np.int32),
                "answer_mask": packed(inputs["answer_mask"], 0, np.int32),
                "answer_weight": packed(inputs["weights"], 0, np.float32)}

    def place(self):
        """Question and slot of each recorded answer."""
        k = self.inputs["k"]
        return np.repeat(np.arange(len(k)), k), np.concatenate([np.arange(n) for n in k])


def run(case_dir, report):
    """Compares one case; `report` is a `parity.Report`."""
    case = VqaCase(case_dir)
    state, batch = case.state(), case.batch()
    teacher = ema(state.teacher, case.task.teacher_of(state.params),
                  case.config.objective.momentum)

    def loss(task, alpha):
        total, aux = jax.jit(lambda: task.loss(
            state.params, teacher, {}, batch, jax.random.key(0),
            {"alpha": jnp.float32(alpha)}))()
        return total, aux.record

    total, record = loss(case.task, case.inputs["alpha"])
    ours = named_outputs(case, state.params, teacher, record, batch) | {
        "loss": total, "loss_f64": total, "variant_alpha0_loss": loss(case.task, 0.0)[0],
        "variant_nodistill_loss": loss(case.without_distillation(), 0.0)[0]}
    for name, recorded in case.outputs.items():
        limit = (parity.LOSS if "loss" in name else
                 parity.EXACT if name == "answer_targets" else parity.OUTPUT)
        report.check(name, ours[name], recorded, limit)
    check_ranking(case, report, state.params, record["online"]["states"], batch["text_mask"])

    after, metrics = parity.make_step(case, case.task, parity.record_gradients())(
        state, batch, None)
    report.check("step loss", metrics["loss"], case.outputs["loss"], parity.LOSS)
    grads = write_tensors(case.kind.params_table(case.config.model), after.opt_state,
                          case.config.model.patch_size)
    parity.check_tensors(report, "grad ", grads, case.arrays("grads"), parity.GRADIENT)


def named_outputs(case, params, teacher, record, batch):
    """The arrays of outputs.npz but the losses of the batch."""
    row, slot = case.place()
    apply = Vqa(case.config.model).apply

    def words(params, states):
        return apply({"params": params}, states["hidden"][slot, row], method=Vqa.predict_words)

    return {
        "image_embeds": apply({"params": params}, batch["image"],
                              method=lambda model, image: model.visual_encoder(image)),
        "question_states": record["online"]["states"],
        "question_states_m": record["momentum"]["states"],
        "answer_targets": np.where(batch["answer_mask"], batch["answer_ids"], -100)[row, slot],
        "decoder_logits": words(params, record["online"]),
        "decoder_logits_m_shifted": words(teacher, record["momentum"])[:, :-1],
        "per_answer_loss": record["losses_ab"][slot, row]}


def check_ranking(case, report, params, states, mask):
    """Compares scores candidate by candidate: some tie in their first word, in no set order."""
    recorded = case.arrays("eval")
    candidates = tuple(jnp.asarray(recorded[f"candidate_{name}"], jnp.int32)
                       for name in ("ids", "mask"))
    k = int(recorded["k_test"])

    def rank(first_twice):
        return jax.device_get(jax.jit(lambda: case.task.rank(
            params, states, mask, candidates, k, first_twice))())

    chosen_bk, scores_bk = rank(first_twice=True)
    report.check("eval topk_ids", chosen_bk, recorded["topk_ids"], parity.EXACT)
    report.check("eval topk_probs", jax.nn.softmax(scores_bk), recorded["topk_probs"],
                 parity.OUTPUT)
    # The recording's order: by the first word, which 0 and 1 share, and there 1 comes first.
    first_bc = recorded["prob_first_token"]
    swap_c = np.array([1, 0, *range(2, first_bc.shape[1])])
    order_bk = swap_c[np.argsort(-first_bc[:, swap_c], kind="stable")[:, :k]]
    report.check("eval ties", first_bc[:, 0], first_bc[:, 1], parity.OUTPUT)
    for name, (ours_bk, our_scores_bk), sign, theirs in (
            ("log_probs_sum", (chosen_bk, scores_bk), 1, recorded["log_probs_sum"]),
            ("answer_loss", rank(first_twice=False), -1, recorded["answer_loss"])):
        report.check(f"eval {name} candidates", np.sort(ours_bk), np.sort(order_bk), parity.EXACT)
        report.check(f"eval {name} by candidate",
                     sign * np.take_along_axis(our_scores_bk, np.argsort(ours_bk), axis=1),
                     np.take_along_axis(theirs.reshape(order_bk.shape), np.argsort(order_bk),
                                        axis=1), parity.OUTPUT)
