"""Pre-training in tests/parity.py: one step, several steps, several groups."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import parity
from parity import EXACT, GRAD_NORM, GRADIENT, LOSS, OUTPUT, STATE, TRAINED

from albef_jax.core import optim
from albef_jax.models.albef import Albef


def run(case_dir, report):
    """Compares one case by what it records; `report` is a `parity.Report`."""
    case = parity.Case(case_dir)
    if "world_size" in case.meta:
        run_groups(case, report)
    elif case.inputs["image"].ndim == 5:
        run_train(case, report)
    else:
        run_forward(case, report)


def word_logits(case, params, record, side, batch):
    """MLM logits at every position of the masked texts; `side`: 'online' or 'momentum'."""
    r = parity.first_group(record)
    return Albef(case.config.model).apply(
        {"params": params}, r[side]["image"], r["masked"]["ids"], jnp.asarray(batch["text_mask"]),
        method=Albef.mlm_logits)


def loss_triple(metrics):
    """(mlm, ita, itm), the order of the recordings, stacked on the last axis."""
    return np.stack([np.asarray(metrics[name]) for name in ("mlm", "itc", "itm")], axis=-1)


def check_losses(report, name, ours, recorded):
    for part, mine, reference in zip(("mlm", "ita", "itm"), np.moveaxis(ours, -1, 0),
                                     np.moveaxis(recorded, -1, 0)):
        report.check(f"{name}[{part}]", mine, reference, LOSS)


def run_variants(case, report, outputs, records):
    """Losses with another alpha or stored temperature; the name spells the value."""
    for key in [k for k in outputs if k.startswith("variant_") and k.endswith("_losses")]:
        kind = key.removeprefix("variant_").removesuffix("_losses")
        name = kind.rstrip("0123456789")
        digits = kind.removeprefix(name)
        value = float(f"{digits[0]}.{digits[1:]}0")
        state = case.state(parity.record_gradients(), value if name == "temp" else None)
        params, _, metrics, _ = records(
            state, case.draws(1), value if name == "alpha" else case.inputs["alpha"])
        check_losses(report, key, loss_triple(metrics)[0], outputs[key])
        report.check(f"variant_{kind}_temp_after", params["temp"],
                     outputs[f"variant_{kind}_temp_after"], LOSS)


def run_forward(case, report):
    """One forward and backward, every recorded intermediate, gradient and state."""
    outputs, task, optimizer = case.arrays("outputs"), case.task(case.inputs["alpha"]), (
        parity.record_gradients())
    batch, draws = case.batch(), case.draws(1)
    state, records = case.state(optimizer), parity.loss_records(case)
    memory = jax.tree.map(np.asarray, state.memory)
    params, teacher, metrics, record = records(state, draws, case.inputs["alpha"])
    ours = parity.named_outputs(case, params, record, memory, batch) | {
        "loss_mlm": metrics["mlm"][0],
        "mlm_logits": word_logits(case, params, record, "online", batch),
        "mlm_logits_m": word_logits(case, teacher, record, "momentum", batch)}
    masked = parity.first_group(record["masked"])
    report.check("mlm_input_ids", masked["ids"], case.inputs["mlm_input_ids"], EXACT)
    labels = np.where(masked["predicted"], batch["text_ids"], -100)
    report.check("mlm_labels", labels, case.inputs["mlm_labels"], EXACT)
    parity.check_outputs(report, ours, outputs)
    for name, recorded in case.arrays("outputs_f64").items():
        report.check(f"float64 {name}", ours[name], recorded, OUTPUT)
    run_variants(case, report, outputs, records)

    after, metrics = parity.make_step(case, task, optimizer)(state, batch, draws)
    check_losses(report, "step losses", loss_triple(metrics), np.stack(
        [outputs[f"loss_{name}"] for name in ("mlm", "ita", "itm")]))
    grads = case.official(after.opt_state)
    parity.check_tensors(report, "grad ", grads, case.arrays("grads"), GRADIENT)
    final = case.official_state(after.params, after.teacher, after.memory)
    parity.check_tensors(report, "after ", final, case.arrays("state_after"), STATE)


def run_train(case, report):
    """Optimiser steps from the initial state, then every parameter."""
    inputs, outputs = case.inputs, case.arrays("outputs")
    rates, settings = jnp.asarray(inputs["lr"]), case.meta["optimizer"]
    block = ml_collections.ConfigDict(dict(
        b1=settings["betas"][0], b2=settings["betas"][1], eps=settings["eps"],
        weight_decay=float(inputs["weight_decay"])))
    optimizer = optim.make_optimizer(block, lambda i: rates[i])
    task = case.task(inputs["alpha"])
    train_step, state = parity.make_step(case, task, optimizer), case.state(optimizer)
    history = []
    for i in range(len(rates)):
        start = int(state.memory["pointer"])
        state, metrics = train_step(state, case.batch(i), case.draws(1, i))
        rows = slice(start, start + case.config.batch_size)
        history.append(jax.device_get({
            "losses": loss_triple(metrics), "grad_norm": metrics["grad_norm"],
            "temp_after_step": state.params["temp"],
            "queue_ptr_after_step": state.memory["pointer"],
            "image_feat_m": state.memory["image_queue"][rows],
            "text_feat_m": state.memory["text_queue"][rows]}))
    ours = {name: np.stack([h[name] for h in history]) for name in history[0]}
    for name, recorded in outputs.items():
        mine = ours[name.removesuffix("_f64")]
        if name.startswith("losses"):
            check_losses(report, name, mine, recorded)
            continue
        limit = (GRAD_NORM if name.startswith("grad_norm") else
                 EXACT if name.startswith("queue_ptr") else OUTPUT)
        report.check(name, mine, recorded, limit)
    final = case.official_state(state.params, state.teacher, state.memory)
    parity.check_tensors(report, "end ", final, case.arrays("state_end"), TRAINED)
    decays = case.official(jax.tree.map(
        lambda p, d: jnp.full(p.shape, d), state.params, optim.decay_mask(state.params)))
    wrong = [name for name, d in decays.items()
             if bool(d.all()) == (name in case.meta["no_decay_params"])]
    report.check(f"weight decay of {len(decays)} parameters {wrong}", len(wrong), 0, EXACT)


def run_groups(case, report):
    """One step over several groups, recorded with one process per group."""
    groups, outputs = case.meta["world_size"], case.arrays("outputs")
    task, optimizer = case.task(case.inputs["alpha"]), parity.record_gradients()
    state, batch, draws = case.state(optimizer), case.batch(), case.draws(groups)
    _, _, metrics, record = parity.loss_records(case)(state, draws, case.inputs["alpha"])
    check_losses(report, "losses", loss_triple(metrics), outputs["losses"])
    logits = np.asarray(record["itm"]["logits"])
    ours = {"sim_i2t": record["itc"]["i2t"], "sim_t2i": record["itc"]["t2i"],
            "image_feat_m": record["momentum"]["image_feat"],
            "text_feat_m": record["momentum"]["text_feat"],
            "itm_logits": np.concatenate([logits[:, 0], logits[:, 2], logits[:, 1]], axis=1)}
    for name, mine in ours.items():
        report.check(name, mine, outputs[name], OUTPUT)
    single = parity.make_step(case, task, optimizer)
    for rank in range(groups):
        # This group in the place of all: their mean gradient is its own.
        copies = np.full(groups, rank)
        rows = np.ravel(copies[:, None] * case.config.group_size
                        + np.arange(case.config.group_size))
        _, alone = single(case.state(optimizer), {k: v[rows] for k, v in batch.items()},
                          jax.tree.map(lambda x: x[copies], draws))
        report.check(f"gnorm_local[{rank}]", alone["grad_norm"], outputs["gnorm_local"][rank],
                     GRAD_NORM)
    after, _ = single(state, batch, draws)
    grads = case.official(after.opt_state)
    parity.check_tensors(report, "grad ", grads, case.arrays("grads_averaged"), GRADIENT)
    final = case.official_state(after.params, after.teacher, after.memory)
    for name in ("image_queue", "text_queue", "queue_ptr"):
        report.check(f"{name}_after", final[name], outputs[f"{name}_after"],
                     EXACT if name == "queue_ptr" else STATE)
