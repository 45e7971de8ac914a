"""ImageBERT in tests/parity.py: forward, variants, steps, fine-tuning, stages, recalls, boxes."""

import functools
import json

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import optax

from albef_jax.config import default_config
from albef_jax.core.build import build
from albef_jax.core.optim import make_optimizer
from albef_jax.data.fields.regions import DetectedRegionsField
from albef_jax.data.sources.regions import Regions, clipped, likeliest, locations
from albef_jax.evaluators import recall
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.pairs import score_pairs
from albef_jax.models import flops
from albef_jax.models.bert import BertEmbeddings, TextLayer
from albef_jax.models.imagebert import ImageBert, RegionEmbeddings
from albef_jax.objectives import imagebert
from albef_jax.objectives.masking import FeatureDraws, MaskingDraws
from albef_jax.run.stages import RunStage
from albef_jax.tasks import make_task, task_class
from albef_jax.tasks.imagebert import ImageBertDraws
from albef_jax.weights import importer, pretrained
from albef_jax.weights.foreign import bert
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.salesforce import shapes_there
from albef_jax.weights.stored import state_shapes
from official import write_tensors
from parity_case import Case, check_steps, check_tensors, keeping_gradients, one_device
from parity_report import EXACT, GRAD_NORM, GRADIENT, LOSS, OUTPUT, Limit

WAYS = {"i2t": "sentence_retrieval", "t2i": "image_retrieval"}  # ours, and the recordings' names
PARTS = ("mlm", "moc", "mrfr", "itm", "total")  # the recordings' order of losses
METRICS = ("mlm", "moc", "mrfr", "itm", "loss")  # and ours
TRAINED, STAGED, UNIT = Limit("trained", 3e-6), Limit("staged", 5e-5), Limit("unit", 5e-6)
RANKED = Limit("gradient", 5e-5)  # of multi-class and triplet losses
COUNTED = Limit("counted", 1e-12, "own")


class ImageBertCase(Case):
    """A recorded model as a run of this project; see `parity_case.Case`."""

    def _config(self):
        c, ids = self.meta["config"], self.meta.get("token_ids", {})
        config = importer.fitted_config(None, self.kind, *self.kind.sizes(self.tensors,
                                                                          self.folder),
                                        heads=c["heads"], path=self.folder)
        examples = self.inputs["text_ids"].shape[-2]
        config.batch_size = config.group_size = examples
        config.model.update(
            dtype="float32", dropout=0.0, attention_dropout=0.0, pad_id=ids.get("PAD", 0),
            cls_id=ids.get("CLS", 2), sep_id=ids.get("SEP", 3), mask_id=ids.get("MASK", 4))
        config.data.update(text_length=c["text_len"], regions_length=c["regions"])
        budgets = dict(mlm_budget=examples * c["text_len"], region_budget=examples * c["regions"])
        config.objective.update({k: v for k, v in budgets.items() if k in config.objective})
        return config.lock()

    def make_task(self, **objective):
        """The task as recorded."""
        del objective
        return make_task(self.config)

    def batch(self, index=...):
        """Recorded examples, of one of several stages, as the fields make them."""
        taken = {name: self.inputs[name][index] for name in (
            "text_ids", "text_mask", "region_features", "boxes", "image_wh", "num_boxes",
            "region_class_prob")}
        count = len(taken["num_boxes"])
        field = DetectedRegionsField(self.config.data, self.config.model.classes)

        def read(row):
            boxes = taken["num_boxes"][row]
            classes, confidences = likeliest(taken["region_class_prob"][row, :boxes])
            return Regions(taken["region_features"][row, :boxes], taken["boxes"][row, :boxes],
                           taken["image_wh"][row], classes, confidences)

        arrays, problems = field.load([functools.partial(read, row) for row in range(count)],
                                      [None] * count, train=False)
        assert not any(problems), problems
        return arrays | {"text_ids": taken["text_ids"], "text_mask": taken["text_mask"],
                         "image_id": np.arange(count, dtype=np.int32)}

    def draws(self, index=..., pairs=""):
        """Recorded random choices of a step, of one group; `pairs`: 'all_negative_'."""
        def take(name, dtype=bool):
            return jnp.asarray(self.inputs[name][index], dtype)[None]

        return ImageBertDraws(
            imagebert.PairDraws(take(f"{pairs}text_idx", jnp.int32),
                                take(f"{pairs}image_idx", jnp.int32)),
            MaskingDraws(take("mask_draw"), take("replace_draw"), take("random_draw"),
                         take("random_words", jnp.int32)),
            FeatureDraws(take("region_mask_draw"), take("region_zero_draw")))

    def trainer(self, rates, mesh=None, **settings):
        """See `Case.trainer`; gradients are as they are. `run_train` has clipped ones."""
        return super().trainer(rates, mesh, clip="none", **settings)

    def official(self, params):
        """Parameters, or something of their shape, under official names; copies."""
        return write_tensors(self.kind.table(self.config),
                             {"params": jax.tree.map(np.array, params)}, patch_size=None)

    def official_state(self, params, state):
        """As `official`; there is no other state."""
        del state
        return self.official(params)

    def run_with(self, settings):
        """The task with other values of the config by dotted key, and the `Parts` of its run,
        whose optimizer keeps the gradients."""
        config = self.config.copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(settings)
        parts = build(config.lock(), one_device())
        parts.optimizer = keeping_gradients(parts.optimizer)
        return parts.task, parts


# ---- pre-training --------------------------------------------------------------------------


def run_forward(folder, meta, report):
    """One forward and backward, every recorded intermediate and gradient, and all variants."""
    case = ImageBertCase(folder, meta)
    outputs, params = case.outputs, case.state().params
    check_batch(report, case.inputs, case.batch())
    record = forward(case.task, params, case.batch(), case.draws())
    check_masked(report, case.inputs, record)
    ours = named_outputs(case.task, params, record)
    check_outputs(report, "", ours, outputs)
    check_outputs(report, "float64 ", ours, case.arrays("outputs_f64"))
    run_variants(case, report, params)
    metrics, _ = check_steps(case, report)
    check_losses(report, "step losses", metrics, outputs["losses"])
    for name in ("outputs", "outputs_f64"):
        report.check(f"grad_norm of {name}", metrics["grad_norm"], case.arrays(name)["grad_norm"],
                     GRAD_NORM)
    row = case.arrays("grads")["bert.embeddings.word_embeddings.weight"][case.config.model.pad_id]
    report.check("the row of [PAD] is that with dropped gradients", row,
                 case.arrays("grad_pad_row")["dropped"], EXACT)


def check_batch(report, inputs, batch):
    """What the field makes of recorded boxes and class probabilities."""
    real = inputs["region_mask"] > 0
    for name, ours in (("location", "regions_box"), ("region_mask", "regions_mask"),
                       ("region_class", "regions_class")):
        limit = OUTPUT if name == "location" else EXACT
        report.check(name, batch[ours][real], inputs[name][real], limit)
        report.check(f"{name} of padding", batch[ours][~real], -1.0 * (name == "region_class")
                     + 0 * batch[ours][~real], EXACT)


def check_masked(report, inputs, record, prefix=""):
    """What is masked and matched, against what was derived from the same draws."""
    masked, predicted = record["masked"], record["predicted"]
    ours = {"mlm_input_ids": masked["text_ids"],
            "mlm_labels": np.where(predicted["words"], record["pairs"]["text_ids"], -100),
            "region_selected": predicted["regions"], "region_input": masked["regions"],
            "itm_label": record["matched"],
            "final_sep_position": masked["text_mask"].sum(axis=1)}
    for name in ours.keys() & inputs.keys():
        there = masked["regions_mask"][..., None] if name == "region_input" else 1
        report.check(prefix + name, ours[name] * there, inputs[name] * there, EXACT)


def forward(task, params, batch, draws):
    """The record of a loss of one group, its metrics, and its pairs before masking."""
    one = jax.tree.map(lambda x: x[0], draws)

    @jax.jit
    def run(params, batch, one):
        _, aux = task.loss(params, {}, {}, batch, jax.random.key(0), {}, one)
        return aux.record | {"metrics": aux.metrics}

    record = jax.device_get(run(params, batch, one))
    if hasattr(one, "pairs"):
        record["pairs"] = jax.device_get(task.paired(batch, *one.pairs))
    return record


def named_outputs(task, params, record):
    """The arrays of outputs.npz, from the record of a group."""
    masked, pairs, functions = record["masked"], record["pairs"], task.predict_fns()
    moc, mrfr = functions["objects"](params, **masked)
    words = functions["words"](params, **masked)
    counted = record["matched"] | (task.objective.masked_losses_on == "all")
    words_on, regions_on = (record["predicted"][name] & counted[:, None]
                            for name in ("words", "regions"))
    squares = mrfr.shape[-1] * imagebert.feature_losses(mrfr, pairs["regions"])
    scores = record["tasks"]["itm"]["scores"]
    return {
        "hidden_states": hidden_states(task, params, masked),
        "attention_mask": attention_mask(masked, task.model.config.final_sep),
        "mlm_logits": words, "moc_logits": moc, "mrfr_pred": mrfr, "itm_logits": scores,
        "cls_state": record["states"][:, 0], "last_hidden_state": record["states"],
        "metrics": record["metrics"],
        "mrfr_sum_squares": np.sum(squares * regions_on),
        "mlm_token_loss": imagebert.class_losses(words, pairs["text_ids"]) * words_on,
        "moc_region_loss": imagebert.class_losses(moc, pairs["regions_class"]) * regions_on,
        "mrfr_region_square": squares * regions_on,
        "itm_pair_loss": np.logaddexp(0, np.where(record["matched"], -scores, scores)),
        "counts": [np.sum(words_on), np.sum(regions_on)]}


def attention_mask(masked, final_sep):
    """Which columns are no padding."""
    end = np.ones((len(masked["text_mask"]), int(final_sep)))
    return np.concatenate([masked["text_mask"], masked["regions_mask"], end], axis=1)


def hidden_states(task, params, masked):
    """The embedded sequence and the output of every layer, `[layers + 1, b, l, d]`."""
    kept = (TextLayer, BertEmbeddings, RegionEmbeddings)
    _, made = task.model.apply({"params": params}, masked, method=ImageBert.encode,
                               capture_intermediates=lambda module, _: isinstance(module, kept),
                               mutable=["intermediates"])
    made = made["intermediates"]
    words = made["bert"]["embeddings"]["__call__"]
    regions = made["region_embeddings"]["__call__"]
    layers = [made["bert"][f"text_{i}"]["__call__"][0]
              for i in range(task.model.config.text_layers)]
    # The final [SEP] is embedded last.
    return np.stack([np.concatenate([words[0], *regions, *words[1:]], axis=1), *layers])


def check_outputs(report, prefix, ours, recorded):
    """Compares recorded arrays by name, at columns that are no padding."""
    mask, texts = ours["attention_mask"], ours["mlm_logits"].shape[1]
    for name, reference in recorded.items():
        kind = name.removesuffix("_f64")
        if kind == "losses":
            check_losses(report, prefix + name, ours["metrics"], reference)
        elif kind != "grad_norm":
            limit = EXACT if kind in ("counts", "attention_mask") else OUTPUT
            report.check(prefix + name, *(real(kind, array, mask, texts) for array in (
                ours[kind], reference)), limit)


def real(name, array, mask, texts):
    """An array of outputs.npz with zeros at columns that are padding; texts are the first ones."""
    array = np.asarray(array)
    if name in ("hidden_states", "last_hidden_state"):
        return array * mask[..., None]
    if name == "mlm_logits":
        return array * mask[:, :texts, None]
    if name in ("moc_logits", "mrfr_pred"):
        return array * mask[:, texts:texts + array.shape[1], None]
    return array


def check_losses(report, name, metrics, recorded):
    """Compares the five losses, which are on the last axis."""
    for ours, part, reference in zip(METRICS, PARTS, np.moveaxis(recorded, -1, 0), strict=True):
        report.check(f"{name}[{part}]", metrics[ours], reference, LOSS)


def run_variants(case, report, params):
    """Other settings, other draws, other pairs: losses, outputs and gradients."""
    recorded, batch, draws = case.arrays("variants"), case.batch(), case.draws()
    none = {name: getattr(draws, name)._replace(
        chosen=jnp.zeros_like(getattr(draws, name).chosen)) for name in ("words", "regions")}
    words, regions = jax.vmap(lambda *drawn: imagebert.conditional(None, *drawn))(
        draws.words, draws.regions, jnp.asarray(case.inputs["mask_text_only"], bool)[None])
    variants = {
        "all": ({"objective.masked_losses_on": "all"}, draws),
        "no_final_sep": ({"model.final_sep": False}, draws),
        "conditional": ({}, draws._replace(words=words, regions=regions)),
        "none_selected": ({}, draws._replace(**none)),
        "no_words_selected": ({}, draws._replace(words=none["words"])),
        "no_regions_selected": ({}, draws._replace(regions=none["regions"])),
        "all_negative": ({}, case.draws(pairs="all_negative_"))}
    names = {name.split("/")[0] for name in recorded}
    report.equal("variants that are not known", names - variants.keys(), set())
    runs = {}  # settings -> task and parts; most variants differ in their draws only
    for name, (settings, drawn) in variants.items():
        if name not in names:
            continue
        task, parts = runs.setdefault(str(settings), case.run_with(settings))
        theirs = {key.removeprefix(f"{name}/"): value for key, value in recorded.items()
                  if key.startswith(f"{name}/")}
        record = forward(task, params, batch, drawn)
        check_masked(report, {key: theirs.pop(key) for key in (
            "mlm_input_ids", "mlm_labels", "region_input", "region_selected") if key in theirs},
            record, f"{name}/")
        check_outputs(report, f"{name}/", named_outputs(task, params, record), theirs)
        after, metrics = parts.step(case.state(parts.optimizer), batch, drawn)
        report.check(f"{name}/grad_norm", metrics["grad_norm"], theirs["grad_norm"], GRAD_NORM)
        check_tensors(report, f"{name}/grad ", case.official(jax.device_get(after.opt_state[1])),
                      case.arrays(f"grads_{name}"), GRADIENT)


def run_train(folder, meta, report):
    """Five steps with the schedule of the config, then every parameter; the optimizer alone."""
    case = ImageBertCase(folder, meta)
    _, parts = case.run_with(rates(meta["peak_lr"], meta["warmup_steps"], meta["total_steps"]))
    report.check("lr", [parts.schedule(step) for step in range(meta["steps"])], case.inputs["lr"],
                 OUTPUT)
    state, history = case.state(parts.optimizer), []
    for step in range(meta["steps"]):
        record = forward(case.task, state.params, case.batch(), case.draws(step))
        check_masked(report, {name: case.inputs[name][step] for name in (
            "itm_label", "mlm_input_ids", "mlm_labels", "region_selected")}, record,
            f"step {step} ")
        state, metrics = parts.step(state, case.batch(), case.draws(step))
        history.append(jax.device_get(metrics))
    check_history(report, "", history, case.outputs)
    check_tensors(report, "end ", case.official(state.params), case.arrays("state_end"), TRAINED)
    check_decay(case, report)
    run_unit(case, report)


def rates(peak, warmup, steps):
    """The recorded schedule as values of the config."""
    return {"optimizer.peak_lr": peak, "optimizer.min_lr": 0.0, "optimizer.warmup_share": 0.0,
            "optimizer.warmup_lr": 0.0, "optimizer.warmup_steps": warmup, "steps": steps}


def check_history(report, prefix, history, outputs):
    """Losses and gradient norms of some steps, float32 and float64."""
    ours = {name: np.stack([metrics[name] for metrics in history]) for name in history[0]}
    for suffix in ("", "_f64"):
        check_losses(report, f"{prefix}losses{suffix}", ours, outputs[f"losses{suffix}"])
        report.check(f"{prefix}grad_norm{suffix}", ours["grad_norm"],
                     outputs[f"grad_norm{suffix}"], GRAD_NORM)


def check_decay(case, report):
    """Which parameters do not decay: those that an update with gradients of 0 leaves as they are.
    """
    _, parts = case.run_with(rates(1.0, 0, 1))
    state = case.state(parts.optimizer)
    updates, _ = parts.optimizer.update(jax.tree.map(jnp.zeros_like, state.params),
                                        state.opt_state, state.params)
    exempt = {name for name, update in case.official(updates).items() if not np.any(update)}
    lists = json.loads((case.folder.parent / "pretrain_forward" / "meta.json").read_text())
    report.equal("no_decay_parameters", exempt, set(lists["no_decay_parameters"]))


def run_unit(case, report):
    """The optimizer on given gradients of made-up parameters."""
    unit, leaves = case.arrays("optimizer_unit"), {
        "a.weight": "kernel", "a.bias": "bias", "b.LayerNorm.weight": "scale",
        "c.embeddings.weight": "position"}

    def of(name):
        return {leaf: {leaf: jnp.asarray(unit[f"{name}/{theirs}"])}
                for theirs, leaf in leaves.items()}

    optimizer = make_optimizer(case.config.optimizer, lambda step: jnp.asarray(unit["lr"])[step])
    params, grads = of("start"), of("grad")
    state = optimizer.init(params)
    for step in range(len(unit["lr"])):
        now = jax.tree.map(lambda x, step=step: x[step], grads)
        report.check(f"unit grad_norm {step}", optax.tree.norm(now), unit["grad_norm"][step],
                     GRAD_NORM)
        updates, state = optimizer.update(now, state, params)
        params = optax.apply_updates(params, updates)
        for theirs, leaf in leaves.items():
            report.check(f"unit {step} {theirs}", params[leaf][leaf],
                         unit[f"after/{theirs}"][step], UNIT)


# ---- fine-tuning ---------------------------------------------------------------------------


def run_retrieval(folder, meta, report):
    """Scores of candidates and of all pairs, the three losses, alone and together, and gradients.
    """
    case = ImageBertCase(folder, meta, "imagebert_retrieval")
    outputs, batch, params = case.outputs, case.batch(), case.state().params
    check_batch(report, case.inputs, batch)
    draws = imagebert.CandidateDraws(*(jnp.asarray(case.inputs[name], jnp.int32)[None]
                                       for name in ("text_idx", "image_idx")))
    names = ("binary", "multiclass", "triplet")
    weights = dict.fromkeys(names, 0.0)
    for name in names:
        settings = {f"objective.{k}": v for k, v in (weights | {name: 1.0}).items()} | {
            "objective.margin": meta["margin"], "objective.negatives_per_pair": 3}
        task, parts = case.run_with(settings)
        record = forward(task, params, batch, draws)
        scores = record["scores"]
        report.check(f"{name}: scores", scores, outputs["scores"], OUTPUT)
        report.check(f"{name}: scores_f64", scores, outputs["scores_f64"], OUTPUT)
        report.check(f"{name}: cls_state", record["states"][:, 0].reshape(*scores.shape, -1),
                     outputs["cls_state"], OUTPUT)
        report.equal(f"{name}: hardest_negative", list(1 + np.argmax(scores[:, 1:], axis=1)),
                     list(outputs["hardest_negative"]))
        after, metrics = parts.step(case.state(parts.optimizer), batch, draws)
        for other in names:  # all are computed, and one is learned
            for suffix in ("", "_f64"):
                report.check(f"{name}: loss_{other}{suffix}", metrics[other],
                             outputs[f"loss_{other}{suffix}"], LOSS)
        report.check(f"{name}: loss", metrics["loss"], outputs[f"loss_{name}"], LOSS)
        check_tensors(report, f"{name}: grad ", case.official(
            jax.device_get(after.opt_state[1])), case.arrays(f"grads_{name}"),
            GRADIENT if name == "binary" else RANKED)
    negative = np.arange(4) > 0
    each = jax.vmap(lambda row: imagebert.triplet_loss(row[None], negative[None], meta["margin"]))
    report.check("hinge", each(outputs["scores"]), outputs["hinge"], LOSS)
    check_all_pairs(case, report, params, batch)


def check_all_pairs(case, report, params, batch):
    """Every image with every text, as the evaluator scores them."""
    functions, mesh = case.task.predict_fns(), one_device()
    images = functions["embed_image"](params, *(batch[name] for name in (
        "regions", "regions_box", "regions_mask")))
    texts = {"text_embeds": functions["embed_text"](params, batch["text_ids"]),
             "text_mask": batch["text_mask"]}
    n = len(images)
    image, text = np.divmod(np.arange(n * n), n)
    scores = score_pairs(Forward(params, functions, mesh), functions["score"],
                         images, texts, image, text, batch_size=8, per_image=3).reshape(n, n)
    for suffix in ("", "_f64"):
        report.check(f"all_pairs_scores{suffix}", scores,
                     case.outputs[f"all_pairs_scores{suffix}"], OUTPUT)


# ---- without a model -----------------------------------------------------------------------


def run_metrics(folder, meta, report):
    """Places and recalls of score matrices, whole and by folds, and both rules for ties."""
    del meta
    arrays, recorded = np.load(folder / "arrays.npz"), json.loads(
        (folder / "metrics.json").read_text())
    for name, theirs in recorded["matrices"].items():
        scores, owner = arrays[f"{name}_scores"], arrays[f"{name}_text_owner"]
        if f"{name}_rank_image_retrieval" in arrays:
            places = recall.places(scores, scores.T, owner, "lower")
            for way, what in WAYS.items():
                report.check(f"{name} rank_{what}", places[way], arrays[f"{name}_rank_{what}"],
                             EXACT)
        ways = {"full": lambda s, o: recall.recalls(s, s.T, o, "lower"),
                "lower_index_first": lambda s, o: recall.recalls(s, s.T, o, "lower"),
                "higher_index_first": lambda s, o: recall.recalls(s, s.T, o, "higher"),
                "fold_mean": lambda s, o: recall.fold_recalls(s, o, recorded["matrices"][name][
                    "folds"], "lower")}
        for what in ways.keys() & theirs.keys():
            check_recalls(report, f"{name} {what}", ways[what](scores, owner), theirs[what])
        for fold, values in enumerate(theirs.get("per_fold", ())):
            size = theirs["fold_size"]
            own = (fold * size <= owner) & (owner < (fold + 1) * size)
            part = scores[fold * size:(fold + 1) * size, own]
            check_recalls(report, f"{name} fold {fold}", recall.recalls(
                part, part.T, owner[own] - fold * size, "lower"), values)


def check_recalls(report, name, ours, recorded):
    """Recalls both ways and their mean."""
    for way, what in WAYS.items():
        for depth in recall.DEPTHS:
            report.check(f"{name} {what}_r{depth}", ours[f"{way}_r{depth}"],
                         recorded[f"{what}_r{depth}"], COUNTED)
    report.check(f"{name} mean_of_six", ours[recall.MEAN], recorded["mean_of_six"], COUNTED)


def run_location(arrays, report):
    """Boxes inside the image, which of them have an area, and the five numbers of each."""
    boxes, valid = clipped(arrays["boxes"], arrays["image_wh"])
    report.check("boxes_clipped", boxes, arrays["boxes_clipped"], EXACT)
    report.check("valid", valid, arrays["valid"], EXACT)
    for suffix in ("", "_f64"):
        report.check(f"location{suffix}", locations(boxes, arrays["image_wh"])[valid],
                     arrays[f"location{suffix}"][valid], OUTPUT)
    report.check("location_unclipped_f64", locations(arrays["boxes"], arrays["image_wh"]),
                 arrays["location_unclipped_f64"], OUTPUT)


def run_manifests(folder, meta, report):
    """Names and shapes of the full size, which of them BERT-base fills, lengths, and the count."""
    del meta
    info = json.loads((folder / "imagebert.info.json").read_text())
    shapes = {name: tuple(shape) for name, shape in json.loads(
        (folder / "imagebert.json").read_text()).items()}
    kind, sizes = KINDS["imagebert_pretrain"], info["config"]
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config = importer.fitted_config(None, kind, *kind.sizes(empty, folder), heads=sizes["heads"],
                                    path=folder).lock()
    leaves = state_shapes(config)
    ours = {name: tuple(shape) for entry in kind.table(config) for name, shape in zip(
        entry.sources, shapes_there(entry, leaves[entry.path].shape))}
    report.equal("tied", kind.tied(config), info["tied"])
    report.equal("names", {*ours, *kind.tied(config)}, set(shapes))
    report.equal("shapes", ours, {name: shapes[name] for name in ours})
    report.equal("parameters", sum(leaf.size for leaf in leaves.values()), info["parameters"])
    plain = default_config("imagebert_pretrain")  # the paper's sizes
    report.equal("sizes", (config.model.to_dict(), config.data.regions_width),
                 (plain.model.to_dict(), plain.data.regions_width))
    lengths = info["lengths"]
    report.equal("lengths", (flops.imagebert_columns(plain.data, plain.model.final_sep),
                             plain.data.text_length, plain.data.regions_length),
                 (lengths["total"], lengths["text_part_with_cls_and_first_sep"],
                  lengths["regions"]))
    config.unlock().init.bert = "bert-base"
    params = unflatten_dict({path[1:]: leaf for path, leaf in leaves.items()})
    seen, stream = task_class(config.task).bert_start(config, params)
    # Strictly: each of these has its place, and every leaf its tensors.
    filled, _ = pretrained.fill(bert, seen, {name: empty[name] for name in info["from_bert_base"]},
                                {}, stream)
    report.equal("from_bert_base", {*flatten_dict(filled)}, {*flatten_dict(stream)})


# ---- stages --------------------------------------------------------------------------------


def run_stages(folder, meta, report):
    """Two stages on their own examples: weights go over, optimizer and schedule begin again."""
    case = ImageBertCase(folder, meta)
    steps, state, histories = meta["total_steps_per_stage"], None, []
    for number, peak in enumerate(meta["peak_lr"]):
        _, parts = case.run_with(rates(peak, meta["warmup_steps"], steps))
        stage = RunStage(f"stage {number}", parts.config, number * steps, (number + 1) * steps,
                         None, parts)
        state = stage.entered(state) if state else case.state(parts.optimizer)
        report.check(f"lr of stage {number}", [
            stage.rate(stage.begin + step) for step in range(steps)], meta["lr"][number], OUTPUT)
        history = []
        for step in range(steps):
            state, metrics = parts.step(state, case.batch(number), case.draws((number, step)))
            history.append(jax.device_get(metrics))
        histories.append(history)
        check_tensors(report, f"stage {number} ", case.official(state.params),
                      case.arrays(f"state_stage{number + 1}"), STAGED)
    for number, history in enumerate(histories):
        check_history(report, f"stage {number} ", history, {
            name: array[number] for name, array in case.outputs.items()
            if not name.startswith("losses_optimizer")})
    # What is recorded without a restart is something else, from the second step after the border.
    kept = case.outputs["losses_optimizer_not_restarted_f64"][1, -1, -1]
    report.equal("a restart makes a difference", abs(histories[1][-1]["loss"] - kept) > 1e-3, True)
