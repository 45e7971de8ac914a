"""SCALE in tests/parity.py: the trunk, its losses and steps, classification, scores, masking.

A recording may have several variants of the same weights and inputs; their switches are `VARIANTS`.
"""

import json
import pathlib
import re

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from albef_jax.config import default_config
from albef_jax.core.build import build
from albef_jax.core.optim import DEFAULTS, make_optimizer, make_schedule
from albef_jax.core.state import TrainState
from albef_jax.core.step import split_groups
from albef_jax.data.text import load_tokenizer
from albef_jax.models.scale import FEATURES, JCT_ORDER, MODALITIES, with_mean
from albef_jax.objectives import scale
from albef_jax.objectives.masking import FeatureDraws, MaskingDraws
from albef_jax.parallel import mesh as sharding
from albef_jax.tasks import make_task
from albef_jax.tasks.scale import RELEASED
from albef_jax.weights import importer
from albef_jax.weights import report as imports
from albef_jax.weights.export import official_tensors
from albef_jax.weights.foreign.kinds import KINDS, detect
from albef_jax.weights.foreign.salesforce import to_tensors
from albef_jax.weights.foreign.torch_file import read_tensors
from parity_case import check_gradients, first_group, keeping_gradients, one_device
from parity_report import EXACT, GRAD_NORM, LOSS, OUTPUT, STATE, Limit
from parity_scale_fields import load_fields, read_products, run_fields

MODEL_RELEASED = {key: value for key, value in RELEASED.items() if key.startswith("model.")}
VARIANTS = {"released": MODEL_RELEASED,
            "released_maskfix": MODEL_RELEASED | {"model.jct_mask": "own"},
            "seed": {}, "seed_sepemb": {"model.table_embeddings": "own"}}
LETTERS = "".join(MODALITIES)
# Ours -> what a recording calls the arrays of a modality.
THEIRS = {"regions": "image", "video": "video", "audio": "audio"}
LOSSES = {"mlm": "mlm", "mem": "mem", "mrp": "mrp", "mfp": "mfp", "mam": "mam", "cl": "cl",
          "total": "loss"}  # their name of a loss -> our metric
PARAMETER = Limit("parameter", 1e-5)  # absolute, "about 1e-5"
UPDATE = Limit("update", 1e-4, "own")  # of the length of a parameter's way
VOCABULARY = dict(pad_id=0, cls_id=2, mask_id=4)


def set_sizes(config, c):
    """The sizes of a case as those of a config, which is unlocked; float32, without dropout."""
    config.model.update(
        width=c["hidden"], layers=c["layers"], text_heads=c["text_heads"],
        visual_heads=c["vis_heads"], jct_heads=c["jct_heads"], jct_layers=c["jct_layers"],
        text_mlp_width=c["text_ffn"], visual_mlp_width=c["vis_ffn"],
        jct_mlp_width=4 * c["hidden"], embed_dim=c["proj"], vocab_size=c["vocab"],
        max_positions=c["max_pos"], max_video=c["max_video"], max_audio=c["max_audio"],
        max_jct=c["jct_pos"], dtype="float32", dropout=0.0, attention_dropout=0.0, **VOCABULARY)
    config.data.update(
        text_length=c["text_len"], table_length=c["table_len"],
        regions_length=c["regions"], regions_width=c["image_dim"],
        video_length=c["clips"], video_width=c["video_dim"],
        audio_length=c["audio_len"], audio_width=c["audio_dim"])


class Case:
    """One variant of a recording: its config, and the task with the recorded weights."""

    def __init__(self, folder, meta, variant):
        self.folder, self.meta, self.variant = pathlib.Path(folder), meta, variant
        self.inputs = self.arrays("inputs")
        self.outputs = self.arrays(f"outputs_{variant}")
        self.tensors = self._tensors()
        self.kind = KINDS[detect(self.tensors, folder)]
        self.config = self._config()
        self.task = make_task(self.config)

    def arrays(self, name):
        """The npz of that name as a dict, empty when the case has none."""
        path = self.folder / f"{name}.npz"
        return dict(np.load(path)) if path.exists() else {}

    def _tensors(self):
        """The weights of the case's own folder, or of that which `meta.json` names beside it."""
        said = " ".join([self.meta.get("weights", ""), *self.meta.get("notes", [])])
        named = re.search(r"\S+(?=state_dict\.npz)", said)
        folder = self.folder.parent / named[0] if named else self.folder
        files = [folder / f"state_dict.{ending}" for ending in ("pth", "npz")]
        file = next(file for file in files if file.exists())
        tensors = dict(read_tensors(file) if file.suffix == ".pth" else np.load(file))
        return tensors | self.arrays("head")

    def _config(self):
        c, config = self.meta["config"], default_config(self.kind.name).unlock()
        config.batch_size = config.group_size = c["batch"]
        set_sizes(config, c)
        if "classes" in config.model:
            config.model.classes = c["classes"]
        if "title_budget" in config.objective:
            config.objective.update(title_budget=c["text_len"], table_budget=c["table_len"])
        switches = VARIANTS[self.variant]
        config.update_from_flattened_dict(
            {key: value for key, value in switches.items() if key[6:] in config.model})
        # The importer holds these sizes against those of the tensors.
        return importer.fitted_config(config, self.kind, *self.kind.sizes(
            self.tensors, self.folder), heads=None, path=self.folder).lock()

    def state(self, optimizer=optax.identity()):
        """The imported state; steps donate it."""
        leaves = importer.read_official(self.tensors, self.kind, self.config,
                                        imports.Report(str(self.folder)))
        params = jax.tree.map(jnp.array, unflatten_dict(leaves))["params"]
        state = TrainState(step=jnp.zeros((), jnp.int32), params=params, teacher={}, memory={},
                           opt_state=optimizer.init(params))
        return jax.device_put(state, sharding.replicated(one_device()))

    def batch(self, index=...):
        """Recorded inputs, of one of several steps, before masking."""
        x = {name: value[index] for name, value in self.inputs.items()}
        batch = {}
        for name, ids, labels in (("title", "input", "lm"), ("table", "pv_input", "em")):
            batch[f"{name}_ids"] = x[f"{ids}_ids"]
            if f"{labels}_label_ids" in x:
                batch[f"{name}_ids"] = np.where(x[f"{labels}_label_ids"] < 0, x[f"{ids}_ids"],
                                                x[f"{labels}_label_ids"])
            batch[f"{name}_mask"] = x[f"{ids}_mask"]
        # A table's token by itself: recordings of steps do not say which belong together.
        batch["table_entity"] = np.broadcast_to(
            2 * np.arange(x["pv_input_ids"].shape[-1]) + 1, x["pv_input_ids"].shape)
        batch = {name: array.astype(np.int32) for name, array in batch.items()}
        for name, theirs in THEIRS.items():
            batch[name] = x.get(f"{theirs}_target", x[f"{theirs}_feat"][:, 1:])
            batch[f"{name}_mask"] = x[f"{theirs}_mask"][:, 1:].astype(np.int32)
        batch["regions_box"] = x["image_loc"][:, 1:]
        present = x.get("present", np.ones((len(batch["title_ids"]), len(LETTERS)), bool))
        batch |= {f"{MODALITIES[m]}_present": present[:, i] for i, m in enumerate(LETTERS)}
        return batch | ({"label": x["label"].astype(np.int32)} if "label" in x else {})

    def draws(self, index=...):
        """Random choices that mask as recorded, `[groups, ...]`; None where nothing is masked."""
        if "lm_label_ids" not in self.inputs:
            return None
        x = {name: jnp.asarray(value[index]) for name, value in self.inputs.items()}
        ids, chosen = x["input_ids"].astype(jnp.int32), x["lm_label_ids"] >= 0
        draws = {"t": MaskingDraws(chosen, ids == VOCABULARY["mask_id"],
                                   jnp.ones_like(chosen), ids),
                 "p": scale.EntityDraws(x["em_label_ids"] >= 0,
                                        jnp.ones_like(x["em_label_ids"], bool))}
        for m in FEATURES:
            theirs = THEIRS[MODALITIES[m]]
            draws[m] = FeatureDraws(x[f"{theirs}_label"] > 0, jnp.all(
                x[f"{theirs}_feat"][:, 1:] == 0, axis=-1))
        return split_groups(draws, self.config.group_size)

    def forward(self):
        """Metrics and intermediates of the task's loss of the recorded batch."""
        groups = split_groups(self.batch(), self.config.group_size)

        @jax.jit
        def run(params, groups, draws):
            return jax.vmap(lambda group, drawn: self.task.loss(
                params, {}, {}, group, jax.random.key(0), {}, drawn)[1])(groups, draws)

        aux = run(self.state().params, groups, self.draws())
        return first_group(aux.metrics), first_group(aux.record)

    def trainer(self, steps=1, **settings):
        """The training step as the loop builds it, and its optimizer, which keeps gradients."""
        config = self.config.copy_and_resolve_references().unlock()
        config.steps = steps
        config.optimizer.update(settings)
        parts = build(config.lock(), one_device())
        parts.optimizer = keeping_gradients(parts.optimizer)
        return parts.step, parts.optimizer

    def official(self, params):
        """Parameters, or something of their shape, under official names; copies."""
        tensors = {}
        for entry in self.kind.table(self.config):
            leaf = params
            for key in entry.path[1:]:
                leaf = leaf[key]
            tensors.update(zip(entry.sources, to_tensors(entry, np.array(leaf))))
        return tensors


def run(folder, meta, report):
    """Compares the variants of a case of the model, whose outputs are one file each."""
    for file in sorted(folder.glob("outputs_*.npz")):
        case = Case(folder, meta, file.stem.removeprefix("outputs_"))
        named = Named(report, case.variant)
        check_weights(case, named)
        if case.kind.classifier:
            run_classify(case, named)
        elif "losses" in case.outputs:
            run_train(case, named)
        else:
            run_forward(case, named)


class Named:
    """A `parity_report.Report` whose lines begin with the name of a variant."""

    def __init__(self, report, name):
        self._report, self._name = report, name

    def check(self, name, *args, **options):
        self._report.check(f"{self._name}: {name}", *args, **options)

    def equal(self, name, *args):
        self._report.equal(f"{self._name}: {name}", *args)


def check_weights(case, report):
    """What came in goes out as the same tensors, those that nothing reads included."""
    state = case.state()
    leaves = {("params", *(key.key for key in path)): np.asarray(leaf)
              for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    unused = {name: case.tensors[name] for name in case.kind.unused(case.config)}
    written = official_tensors(leaves, case.kind, case.config, imports.Report("back"), unused)
    report.equal("tensors", set(written), set(case.tensors))
    changed = [name for name, tensor in case.tensors.items()
               if written[name].dtype != tensor.dtype
               or not np.array_equal(written[name], tensor)]
    report.equal("tensors that change on the way through", changed, [])


def run_forward(case, report):
    """One forward and backward pass of pre-training."""
    metrics, record = case.forward()
    check_masked(case, record, report)
    ours = forward_outputs(case, metrics, record)
    for name, recorded in case.outputs.items():
        base = name.removesuffix("_f64")
        report.check(name, ours[base], recorded, LOSS if "loss" in name else OUTPUT)
    check_step(case, metrics["loss"], report)
    if case.variant == "released" and "scores_off_losses" in case.meta:
        run_scores_off(case, report)


def check_masked(case, record, report):
    """The masked batch, and what is to be predicted."""
    x, masked, predicted = case.inputs, record["masked"], record["predicted"]
    report.check("title", masked["title_ids"], x["input_ids"], EXACT)
    report.check("table", masked["table_ids"], x["pv_input_ids"], EXACT)
    for m, labels in {"t": "lm_label_ids", "p": "em_label_ids", "i": "image_label",
                      "v": "video_label", "a": "audio_label"}.items():
        report.check(f"predicted {MODALITIES[m]}", predicted[m], x[labels] != -1, EXACT)
    for name, theirs in THEIRS.items():
        report.check(name, with_mean(masked[name], masked[f"{name}_mask"]), x[f"{theirs}_feat"],
                     OUTPUT)


def forward_outputs(case, metrics, record):
    """Our value of every array that a recording of pre-training may have."""
    encoded, contrast, scores = record["encoded"], record["contrast"], record["joint_scores"]
    weight_bm = np.diagonal(scores.normalised, axis1=1, axis2=2)
    stacked = np.stack([encoded.projected[m] for m in LETTERS], axis=1)
    temperature = case.config.objective.temperature
    ours = {f"loss_{theirs}": metrics[name] for theirs, name in LOSSES.items()} | {
        "jct_out": np.concatenate([encoded.joint[m] for m in JCT_ORDER], axis=1),
        "modality_weight": weight_bm, "pair_losses": contrast["pair_losses"],
        "pair_logits_unweighted": listed(scale.pair_logits(stacked, temperature)),
        "pair_logits": listed(scale.pair_logits(stacked, temperature,
                                                contrast["scores"].normalised))}
    for prefix, of_it in (("clr", contrast["scores"]), ("mask", scores)):
        ours |= {f"{prefix}_{name}": x for name, x in zip(("S", "S1", "S2"), of_it)}
    for i, m in enumerate(LETTERS):
        predicted = predict(case, m, getattr(encoded, {"jct": "joint"}.get(
            case.config.model.masked_head_input, "unimodal"))[m])
        first = 1 if m in FEATURES else 0
        ours |= {f"emb_{m}": encoded.embedded[m], f"uni_{m}": encoded.unimodal[m],
                 f"z_{m}": encoded.projected[m], f"jct_cls_{m}": encoded.joint[m][:, 0],
                 f"pred_{m}": predicted,
                 f"pred_weighted_{m}": predicted[:, first:] * weight_bm[:, i, None, None]}
    return ours


def predict(case, letter, states):
    """The masked head at every position."""
    return np.asarray(case.task.predict_masked(case.state().params, letter, states))


def listed(logits_rbd):
    """`objectives.scale.pair_logits` as recorded: by unordered pair and anchor, the positive first
    and the others by example, those of the pair's first modality before those of its second."""
    b, listed = logits_rbd.shape[1], []
    anchor, other = scale.ordered_pairs(len(LETTERS))
    rows = {pair: np.asarray(logits) for pair, logits in zip(zip(anchor, other), logits_rbd)}
    for first, second in zip(*np.triu_indices(len(LETTERS), 1)):
        both = []
        for pair in ((first, second), (second, first)):
            for i, row in enumerate(rows[pair]):
                cross, own = (np.delete(half, i) for half in (row[:b], row[b:]))
                halves = (own, cross) if pair[0] < pair[1] else (cross, own)
                both.append(np.concatenate([row[i:i + 1], *halves]))
        listed.append(both)
    return np.array(listed)


def run_scores_off(case, report):
    """The losses without scores."""
    config = case.config.copy_and_resolve_references().unlock()
    config.objective.simcl_mode = "off"
    case.task = make_task(config.lock())
    metrics, _ = case.forward()
    for name, recorded in case.meta["scores_off_losses"].items():
        ours = metrics[LOSSES[name.removeprefix("loss_")]]
        report.check(f"scores off {name}", ours, recorded, LOSS)


def check_step(case, loss, report):
    """A step of the loop: its loss is that of the forward pass, its gradients the recorded ones."""
    recorded = case.arrays(f"grads_{case.variant}")
    if not recorded:
        return
    step, optimizer = case.trainer()
    state, metrics = step(case.state(optimizer), case.batch(), case.draws())
    report.check("step loss", metrics["loss"], loss, LOSS)
    check_gradients(report, without_key_biases(case.official(state.opt_state[1])),
                    without_key_biases(recorded))


def without_key_biases(tensors):
    """Without what has a gradient of zero but for rounding; see `parity_case`."""
    return {name: np.delete(tensor, np.s_[len(tensor) // 3:2 * len(tensor) // 3])
            if name.endswith("attn.in_proj_bias") else tensor for name, tensor in tensors.items()}


def run_train(case, report):
    """Steps of the recorded optimizer, from the config; then every parameter that changes."""
    meta = case.meta
    released = {key.partition(".")[2]: value for key, value in RELEASED.items()
                if key.startswith("optimizer.")}
    train_step, optimizer = case.trainer(meta["t_total"], **released | dict(
        lr_factors=(), peak_lr=meta["lr"], warmup_share=meta["warmup"], b1=meta["beta1"],
        b2=meta["beta2"], eps=meta["eps"], clip_norm=meta["max_grad_norm"],
        weight_decay=float(meta["weight_decay"].split(",")[0])))
    state, history = case.state(optimizer), []
    before = case.official(state.params)
    for i in range(meta["steps"]):
        state, metrics = train_step(state, case.batch(i), case.draws(i))
        history.append(jax.device_get(metrics))
    losses = np.array([[m[LOSSES[name]] for name in meta["variants"][case.variant][
        "losses_names"]] for m in history])
    for name in ("losses", "losses_f64"):
        report.check(name, losses, case.outputs[name], LOSS)
    report.check("grad_norm", [m["grad_norm"] for m in history], case.outputs["grad_norm"],
                 GRAD_NORM)
    after = without_key_biases(case.official(state.params))
    check_end(report, without_key_biases(before), after, case)


def check_end(report, before, after, case):
    """Parameters after the last step, those recorded in full, and sums of the others."""
    changed = set()
    for name, recorded in case.outputs.items():
        what, _, key = name.partition("/")
        if not key:
            continue
        changed.add(key)
        if key.endswith((".key.bias", "attn.in_proj_bias")):
            continue
        ours, moved = after[key].astype(np.float64), after[key] - before[key].astype(np.float64)
        if what == "end":
            report.check(name, ours, recorded, PARAMETER, scale=1.0)
        elif what == "end_norm":
            report.check(name, np.linalg.norm(ours), recorded, PARAMETER)
        elif what == "end_sum":  # of rounding errors that partly cancel
            report.check(name, np.sum(ours), recorded, PARAMETER, scale=np.sqrt(ours.size))
        else:
            report.check(name, np.linalg.norm(moved), recorded, UPDATE)
    for name, recorded in without_key_biases(case.arrays(f"state_end_{case.variant}")).items():
        if not name.endswith(".key.bias"):
            report.check(f"after {name}", after[name], recorded, PARAMETER, scale=1.0)
    still = [name for name in after if name not in changed
             and not np.array_equal(after[name], before[name])]
    report.equal("parameters that should stay", still, [])


def run_classify(case, report):
    """The classifier, features for retrieval, and gradients."""
    metrics, record = case.forward()
    cls, label = record["cls"], case.batch()["label"]
    ours = {"loss": metrics["loss"], "logits": record["logits"], "hidden": record["hidden"],
            "top1_correct": np.argmax(record["logits"], axis=-1) == label,
            **{f"jct_cls_{m}": cls[m] for m in LETTERS}}
    encoded = jax.jit(case.task.predict_fns()["encode"])(case.state().params, **case.batch())
    for name, recorded in case.outputs.items():
        base = name.removesuffix("_f64")
        if base.startswith("feat_"):
            ours[base] = sum(np.asarray(encoded[f"joint_{m}"])
                             for m in base.removeprefix("feat_"))
        limit = EXACT if recorded.dtype == bool else LOSS if base == "loss" else OUTPUT
        report.check(name, ours[base], recorded, limit)
    check_step(case, metrics["loss"], report)


# ---- recordings without a model ------------------------------------------------------------


def run_scores(arrays, report):
    """Scores of stacks of features `[m, b, d]`, and gradients through them."""
    for name in sorted({key.partition("/")[0] for key in arrays}):
        features_bmp = jnp.asarray(arrays[f"{name}/features"].swapaxes(0, 1))
        scores, back = jax.vjp(scale.harmonised_scores, features_bmp)
        for key, ours in zip(("S", "S1", "S2"), scores):
            report.check(f"{name}/{key}", ours, arrays[f"{name}/{key}"], OUTPUT)
        report.check(f"{name}/diag", np.diagonal(scores.normalised, axis1=1, axis2=2),
                     arrays[f"{name}/diag"], OUTPUT)
        cotangent = jnp.asarray(arrays[f"{name}/cotangent"])
        (grad,) = back(scale.Scores(*map(jnp.zeros_like, scores[:2]), cotangent))
        grad, recorded = np.asarray(grad).swapaxes(0, 1), arrays[f"{name}/grad_features"]
        # That of a zero row is a division by a floor in the recording, and none here.
        zero_mb = ~np.any(arrays[f"{name}/features"], axis=-1)
        report.check(f"{name}/gradient of a zero row", grad[zero_mb], 0 * grad[zero_mb], EXACT)
        kept = ~np.any(zero_mb, axis=0)
        report.check(f"{name}/grad_features", grad[:, kept], recorded[:, kept], Limit(
            "gradient", 2e-5))


def run_masking(folder, meta, report):
    """Raw products through the fields, then masked by the recorded draws."""
    run_fields(folder, meta, report)
    raw, recorded, samples = read_products(folder)
    tokenizer = load_tokenizer(str(folder))
    arrays = load_fields(raw, recorded, samples, tokenizer)
    config = default_config("scale_pretrain").unlock()
    config.model.update({f"{name}_id": getattr(tokenizer, f"{name}_id")
                         for name in ("pad", "cls", "mask")})
    masked, predicted = make_task(config.lock()).mask(arrays, recorded_draws(arrays, samples))
    for m, ids, labels in (("t", "input_ids", "lm_label_ids"), ("p", "pv_input_ids",
                                                               "em_label_ids")):
        name = f"{MODALITIES[m]}_ids"
        report.check(f"masked {name}", masked[name], recorded[ids], EXACT)
        report.check(f"labels {name}", np.where(predicted[m], arrays[name], -1),
                     recorded[labels], EXACT)
    for m in FEATURES:
        name = MODALITIES[m]
        theirs = THEIRS[name]
        report.check(f"masked {name}", with_mean(masked[name], masked[f"{name}_mask"]),
                     recorded[f"{theirs}_feat"], OUTPUT)
        report.check(f"labels {name}", np.where(predicted[m], 1, -1), recorded[f"{theirs}_label"],
                     EXACT)


def recorded_draws(arrays, samples, rate=0.15):
    """The draws of a recording by letter, from its uniform numbers.

    Args:
      arrays: of the fields, for their shapes. samples: of `draws.json`. rate: of what is masked.
    """
    shape = {m: arrays[f"{name}_mask"].shape for m, name in MODALITIES.items()}
    u = {m: np.ones(shape[m]) for m in MODALITIES}
    words, half = np.zeros(shape["t"], np.int32), np.ones(shape["p"])
    for row, sample in enumerate(samples):
        drawn = sample["draws"]
        for at, (number, word) in enumerate(drawn["text"], 1):
            u["t"][row, at], words[row, at] = number, word[1] if word else 0
        for at, (number, part) in enumerate(drawn["table"]):
            u["p"][row, at], half[row, at] = number, 1.0 if part is None else part
        for m in FEATURES:
            numbers = drawn[THEIRS[MODALITIES[m]]]
            u[m][row, :len(numbers)] = numbers
    chosen, share = ({m: f(x) for m, x in u.items()} for f in (
        lambda x: jnp.asarray(x < rate), lambda x: jnp.asarray(x / rate)))
    return {"t": MaskingDraws(chosen["t"], share["t"] < 0.8, share["t"] < 0.9, jnp.asarray(words)),
            "p": scale.EntityDraws(chosen["p"], jnp.asarray(half < 0.5)),
            "i": FeatureDraws(chosen["i"], share["i"] < 0.9),
            **{m: FeatureDraws(chosen[m], share[m] < 1.0) for m in "va"}}


def run_optimizer(folder, meta, report):
    """The optimizer of a config on recorded gradients, one parameter at a time.

    A parameter without gradient in a step is skipped by the recorded code, its count of steps
    included: it is given the other steps only.
    """
    inputs, outputs = (dict(np.load(folder / f"{name}.npz")) for name in ("inputs", "outputs"))
    for run_name, how in meta["runs"].items():
        multiplier = how["schedule_multiplier"]
        schedule = make_schedule(optimizer_block(meta, how, next(iter(meta["lr"]))),
                                 max(how["t_total"], 1))
        top = next(iter(meta["lr"].values()))
        report.check(f"{run_name} schedule", jax.vmap(schedule)(jnp.arange(len(multiplier))) / top,
                     multiplier, STATE)
        for name in meta["lr"]:
            config = optimizer_block(meta, how, name)
            optimizer = make_optimizer(config, make_schedule(config, max(how["t_total"], 1)))
            check_parameter(name, run_name, optimizer, meta, inputs, outputs, report)


def optimizer_block(meta, how, name):
    """The `optimizer` block of a recorded run for one parameter."""
    scheduled, lr = how["warmup"] > 0, meta["lr"][name]
    norm = how.get("max_grad_norm", meta["max_grad_norm"])
    return ConfigDict(DEFAULTS | dict(
        peak_lr=lr, min_lr=0.0 if scheduled else lr, warmup_lr=0.0, warmup_steps=0,
        schedule="linear" if scheduled else "constant",
        warmup_share=how["warmup"] if scheduled else 0.0,
        weight_decay=meta["weight_decay"][name], no_decay=(), b1=meta["beta1"], b2=meta["beta2"],
        eps=meta["eps"], bias_correction=False, clip="per_tensor" if norm > 0 else "none",
        clip_norm=max(norm, 0.0)))


def check_parameter(name, run_name, optimizer, meta, inputs, outputs, report):
    skipped = [int(step) for note in meta.get("notes", []) for step in re.findall(
        rf"parameter {name} has no gradient at step index (\d+)", note)]
    params = jnp.asarray(inputs[f"param_{name}"])
    state, seen = optimizer.init(params), []
    for step in range(meta["steps"]):
        if step not in skipped:
            updates, state = optimizer.update(jnp.asarray(inputs[f"grad_{name}"][step]), state,
                                              params)
            params = optax.apply_updates(params, updates)
        moments = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
        seen.append((params, *moments))
    for part, ours in zip(("param", "m", "v"), map(np.stack, zip(*seen))):
        report.check(f"{run_name}/{part}_{name}", ours, outputs[f"{run_name}/{part}_{name}"], STATE)
    report.check(f"{run_name}/param_{name}_f64", np.stack([p for p, *_ in seen]),
                 outputs[f"{run_name}/param_{name}_f64"], STATE)


def run_manifests(folder, meta, report):
    """Names, shapes and numbers of parameters at the released sizes."""
    del meta
    for file in sorted(folder.glob("*.info.json")):
        shapes = {name: tuple(shape) for name, shape in json.loads(
            file.with_name(file.name.replace(".info", "")).read_text()).items()}
        info = json.loads(file.read_text())
        empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        kind = KINDS[detect(empty, folder)]
        config = importer.fitted_config(None, kind, *kind.sizes(empty, folder), heads=None,
                                        path=folder)
        params = jax.eval_shape(make_task(config.lock()).init, jax.random.key(0))
        used = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        unused, tied = kind.unused(config), kind.tied(config)
        read = {name for entry in kind.table(config) for name in entry.sources}
        title = file.name.partition(".")[0]
        report.equal(f"{title} names", read | set(unused) | set(tied), set(shapes))
        report.equal(f"{title} tied", tied, info["tied"])
        report.equal(f"{title} used", used, info["parameters_used"])
        dead = sum(int(np.prod(shape)) for shape, _ in unused.values())
        report.equal(f"{title} parameters", used + dead, info["parameters"])
        listed = tuple(info["unused_prefixes_or_keys"])
        report.equal(f"{title} unused", {name for name in shapes if name.startswith(listed)
                                         and name not in tied}, set(unused))
