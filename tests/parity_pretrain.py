"""Pre-training in tests/parity.py: one step, several steps, several groups."""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.models.albef import Albef
from parity_aligned import check_losses, check_outputs, check_temperature, named_outputs, stacked
from parity_case import check_steps, check_tensors, decays, first_group
from parity_report import EXACT, GRAD_NORM, GRADIENT, LOSS, OUTPUT, STATE, TRAINED

PARTS, METRICS = ("mlm", "ita", "itm"), ("mlm", "itc", "itm")  # the recordings' order, and ours


def run(case, report):
    """Compares one case by what it records; `report` is a `parity_report.Report`."""
    if "world_size" in case.meta:
        run_groups(case, report)
    elif case.inputs["image"].ndim == 5:
        run_train(case, report)
    else:
        run_forward(case, report)


def word_logits(case, params, record, side):
    """MLM logits at every position of the masked texts; `side`: 'online' or 'momentum'."""
    r = first_group(record)
    return Albef(case.config.model).apply(
        {"params": params}, r[side]["image"], r["masked"]["ids"],
        jnp.asarray(case.batch()["text_mask"]), method=Albef.mlm_logits)


def run_variants(case, report, forward):
    """Losses with another alpha or stored temperature; the name spells the value."""
    for key in [k for k in case.outputs if k.startswith("variant_") and k.endswith("_losses")]:
        kind = key.removeprefix("variant_").removesuffix("_losses")
        name = kind.rstrip("0123456789")
        value = spelled(kind.removeprefix(name))
        state = case.state(**{"temp": np.float32(value)} if name == "temp" else {})
        params, _, _, metrics, _ = forward(
            state, value if name == "alpha" else case.inputs["alpha"])
        check_losses(report, key, PARTS, stacked(metrics, *METRICS)[0], case.outputs[key])
        report.check(f"variant_{kind}_temp_after", params["temp"],
                     case.outputs[f"variant_{kind}_temp_after"], LOSS)


def spelled(digits):
    """'02' -> 0.2"""
    return float(f"{digits[0]}.{digits[1:]}0")


def run_forward(case, report):
    """One forward and backward, every recorded intermediate, gradient and state."""
    state, forward, outputs = case.state(), case.forward(), case.outputs
    params, teacher, _, metrics, record = forward(state, case.inputs["alpha"])
    ours = named_outputs(case, params, record, state.memory) | {
        "loss_mlm": metrics["mlm"][0],
        "mlm_logits": word_logits(case, params, record, "online"),
        "mlm_logits_m": word_logits(case, teacher, record, "momentum")}
    masked = first_group(record["masked"])
    report.check("mlm_input_ids", masked["ids"], case.inputs["mlm_input_ids"], EXACT)
    labels = np.where(masked["predicted"], case.batch()["text_ids"], -100)
    report.check("mlm_labels", labels, case.inputs["mlm_labels"], EXACT)
    check_outputs(report, ours, outputs)
    for name, recorded in case.arrays("outputs_f64").items():
        report.check(f"float64 {name}", ours[name], recorded, OUTPUT)
    run_variants(case, report, forward)
    check_temperature(case, report, params, forward)

    metrics, after = check_steps(case, report)
    check_losses(report, "step losses", PARTS, stacked(metrics, *METRICS),
                 stacked(outputs, *(f"loss_{part}" for part in PARTS)))
    check_tensors(report, "after ", after, case.arrays("state_after"), STATE)


def run_train(case, report):
    """Optimiser steps from the initial state, then every parameter."""
    inputs, settings = case.inputs, case.meta["optimizer"]
    train_step, optimizer = case.trainer(
        inputs["lr"], b1=settings["betas"][0], b2=settings["betas"][1], eps=settings["eps"],
        weight_decay=float(inputs["weight_decay"]))
    state, history = case.state(optimizer), []
    for i in range(len(inputs["lr"])):
        start = int(state.memory["pointer"])
        state, metrics = train_step(state, case.batch(i), case.draws(i))
        rows = slice(start, start + case.config.batch_size)
        history.append(jax.device_get({
            "losses": stacked(metrics, *METRICS), "grad_norm": metrics["grad_norm"],
            "temp_after_step": state.params["temp"],
            "queue_ptr_after_step": state.memory["pointer"],
            "image_feat_m": state.memory["image_queue"][rows],
            "text_feat_m": state.memory["text_queue"][rows]}))
    ours = {name: np.stack([h[name] for h in history]) for name in history[0]}
    for name, recorded in case.outputs.items():
        mine = ours[name.removesuffix("_f64")]
        if name.startswith("losses"):
            check_losses(report, name, PARTS, mine, recorded)
            continue
        limit = (GRAD_NORM if name.startswith("grad_norm") else
                 EXACT if name.startswith("queue_ptr") else OUTPUT)
        report.check(name, mine, recorded, limit)
    final = case.official_state(state.params, state)
    check_tensors(report, "end ", final, case.arrays("state_end"), TRAINED)
    # What `check_steps` compares our optimizer with has the rule of the recording.
    exempt = {name for name, tensor in case.official(state.params).items()
              if not decays(name, tensor)}
    report.equal("no_decay_params", exempt, set(case.meta["no_decay_params"]))


def run_groups(case, report):
    """One step over several groups, recorded with one process per group."""
    groups, outputs, size = case.meta["world_size"], case.outputs, case.config.group_size
    batch, draws = case.batch(), case.draws()
    *_, metrics, record = case.forward()(case.state(), case.inputs["alpha"])
    check_losses(report, "losses", PARTS, stacked(metrics, *METRICS), outputs["losses"])
    logits = np.asarray(record["itm"]["logits"])
    ours = {"sim_i2t": record["itc"]["i2t"], "sim_t2i": record["itc"]["t2i"],
            "image_feat_m": record["momentum"]["image_feat"],
            "text_feat_m": record["momentum"]["text_feat"],
            "itm_logits": np.concatenate([logits[:, 0], logits[:, 2], logits[:, 1]], axis=1)}
    for name, mine in ours.items():
        report.check(name, mine, outputs[name], OUTPUT)
    train_step, optimizer = case.trainer([1e-3])
    for rank in range(groups):
        # This group in the place of all: their mean gradient is its own.
        copies = np.full(groups, rank)
        rows = np.ravel(copies[:, None] * size + np.arange(size))
        _, alone = train_step(case.state(optimizer), {k: v[rows] for k, v in batch.items()},
                              jax.tree.map(lambda x: x[copies], draws))
        report.check(f"gnorm_local[{rank}]", alone["grad_norm"], outputs["gnorm_local"][rank],
                     GRAD_NORM)
    check_averages(case, report, train_step(case.state(optimizer), batch, draws)[0])


def check_averages(case, report, after):
    """The mean gradient, which the optimizer keeps, and the queues, after a step of all groups."""
    check_tensors(report, "grad ", case.official(jax.device_get(after.opt_state[1])),
                  case.arrays("grads_averaged"), GRADIENT)
    final = case.official_state(after.params, after)
    queues = {name: case.outputs[f"{name}_after"]
              for name in ("image_queue", "text_queue", "queue_ptr")}
    check_tensors(report, "after ", final, queues, STATE)
