"""SCALE pre-training: five masked tasks, contrast of all pairs of modalities (arXiv 2109.04275)."""

import math

import jax
import jax.numpy as jnp
import optax

from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.text import TextField
from albef_jax.data.fields.title import TitleField
from albef_jax.errors import UserError
from albef_jax.models import flops
from albef_jax.models.layers import initial_std
from albef_jax.models.scale import FEATURES, JCT_ORDER, MODALITIES, WORDS, Scale, Size, withheld
from albef_jax.models.stack import REMAT_POINTS
from albef_jax.objectives import masking, scale
from albef_jax.tasks.base import Aux, Rule, Shown, Task, check_mask_shares

MODEL = dict(
    modalities="tipva",  # some of these, in this order; see `models.scale.MODALITIES`
    width=768, layers=6,  # of each encoder
    text_heads=12, text_mlp_width=3072, visual_heads=8, visual_mlp_width=1024,
    jct_layers=6, jct_heads=8, jct_mlp_width=3072,
    embed_dim=1024,  # of what is contrasted; in a classifier, of its hidden layer
    max_positions=512, max_video=50, max_audio=100, max_jct=512,
    share_encoders=False,  # the table through the title's encoder, video through the regions'
    table_embeddings="shared",  # with the title; 'own'
    table_segment=0,  # token type of a table's words
    masked_head_input="jct",  # 'unimodal'
    jct_mask="own",  # padding of the own example; 'released': mixed with that of others
    missing_policy="zero_attend",  # missing values are zeros that count; 'zero_mask': they do not
    dropout=0.1, attention_dropout=0.1, dtype="bfloat16", init_std=0.02,
    scan=False, remat=False, remat_save=(),  # see `tasks.albef.MODEL`
    # Set from the tokenizer when training starts.
    vocab_size=21128, pad_id=0, cls_id=101, mask_id=103)
INIT = dict(bert="", bert_layers=(), bert_tie=False)  # see `tasks.albef.INIT`
OPTIMIZER = dict(
    peak_lr=1e-4, min_lr=0.0, warmup_lr=0.0, warmup_share=0.1, schedule="linear",
    weight_decay=0.01, eps=1e-6, clip="per_tensor")
# What the released code does where it and the paper disagree; see `as_released`.
RELEASED = {
    "model.share_encoders": True, "model.masked_head_input": "unimodal",
    "model.jct_mask": "released", "optimizer.bias_correction": False,
    # Its names of norms in the JCT are not among those that do not decay.
    "optimizer.no_decay": ("(^|/)bias$", "^(?!(.*/)?jct_).*/scale$"),
    "optimizer.clip_parts": (("(^|/)encoders_.*/qkv/", 3),),
    "optimizer.lr_factors": ((r"(^|/)(embeddings|encoders)_title(_\d+)?/", 0.1),)}
LENGTHS = {"t": "text_length", "p": "table_length", "i": "regions_length", "v": "video_length",
           "a": "audio_length"}  # in config.data
WIDTHS = {"i": "regions_width", "v": "video_width", "a": "audio_width"}
LOSSES = {"t": "mlm", "p": "mem", "i": "mrp", "v": "mfp", "a": "mam"}  # the masked task of each
REMAT = {"model.remat": True, "model.remat_save": ()}


def as_released(config):
    """Sets in a config of any of SCALE's tasks what the released code does; returns it."""
    config.update_from_flattened_dict({
        key: value for key, value in RELEASED.items()
        if key.partition(".")[2] in config[key.partition(".")[0]]})
    return config


def sizes_of(data):
    """The `Size` of every modality, from the `data` block of a config."""
    return tuple(Size(m, data[LENGTHS[m]] + (m in FEATURES), data[WIDTHS[m]] if m in WIDTHS else 0)
                 for m in JCT_ORDER)


class ScaleTask(Task):
    """What SCALE's tasks share: products of five modalities; see `tasks.base.Task`."""

    OBJECTIVE = dict(
        # Share of a product's modalities that training does not show, so that the model is good at
        # each subset of them.
        withheld=0.0)
    limits = {
        **{f"model.{name}": (1, 2**20) for name in (
            "width", "text_heads", "text_mlp_width", "visual_heads", "visual_mlp_width",
            "jct_heads", "jct_mlp_width", "embed_dim", "max_positions", "max_video",
            "max_audio", "max_jct", "vocab_size", "classes")},
        "model.layers": (1, 1024), "model.jct_layers": (1, 1024),
        **{f"model.{name}": (0, None) for name in ("pad_id", "cls_id", "mask_id")},
        "model.init_std": (0.0, 1.0), "init.bert_layers": (-1, None),
        "objective.temperature": (0.001, None), "objective.mask_replace": (0.0, 1.0),
        "model.dropout": (0.0, 1.0), "model.attention_dropout": (0.0, 1.0),
        **{f"objective.{name}": (0.0, None) for name in ("cl", *LOSSES.values())},
        "objective.withheld": (0.0, 1.0),
        "objective.mask_rate": (0.0, 1.0), "objective.region_zeroed": (0.0, 1.0),
        "objective.title_budget": (0, None), "objective.table_budget": (0, None)}
    choices = {
        "model.dtype": ("float32", "bfloat16"), "model.remat_save": REMAT_POINTS,
        "model.table_embeddings": ("shared", "own"),
        "model.masked_head_input": ("jct", "unimodal"), "model.table_segment": (0, 1),
        "model.jct_mask": ("own", "released"),
        "model.missing_policy": ("zero_attend", "zero_mask"),
        "objective.simcl_mode": ("logit", "loss", "off"),
        "objective.cl_reduction": ("mean", "sum")}
    free_keys = ("model.scan", "model.remat", "model.remat_save")
    # Accumulation would make smaller groups of a batch that is one group: it is no way out here.
    lighter = ({"model.remat": True, "model.remat_save": ("qkv", "attention")}, REMAT,
               REMAT | {"mesh.fsdp": 4}, REMAT | {"mesh.fsdp": 8})

    def __init__(self, config):
        self.objective, self.modalities = config.objective, config.model.modalities
        self._example = {name: one for field in self.fields(config).values()
                         for name, one in field.spec().items()}

    @classmethod
    def defaults(cls):
        """See `Task.defaults`."""
        fields = (TextField, TableField, RegionsField, VideoField, AudioField)
        data = {key: value for field in fields for key, value in field.defaults.items()}
        return dict(model=MODEL, init=INIT, objective=cls.OBJECTIVE, optimizer=OPTIMIZER,
                    data={**data, "text_length": 36, "sep": True})

    @classmethod
    def fields(cls, config):
        """Those of the modalities that there are; see `Task.fields`."""
        data = config.data
        make = {"t": lambda: TitleField(data, config.model),
                "i": lambda: RegionsField(data), "p": lambda: TableField(data, config.model),
                "v": lambda: VideoField(data), "a": lambda: AudioField(data)}
        return {MODALITIES[m]: make[m]() for m in MODALITIES if m in config.model.modalities}

    @classmethod
    def check(cls, config):
        """Sizes that must divide each other or fit, and names; see `Task.check`."""
        m, data = config.model, config.data
        letters = "".join(letter for letter in MODALITIES if letter in m.modalities)
        if not letters or letters != m.modalities:
            raise UserError(f"model.modalities is {m.modalities!r}; give some of the letters "
                            f"{''.join(MODALITIES)}, in this order.")
        for part in ("text", "visual", "jct"):
            if m.width % m[f"{part}_heads"]:
                raise UserError(f"model.width {m.width} is not a multiple of model.{part}_heads "
                                f"{m[f'{part}_heads']}; change one of them.")
        tokens = {size.letter: size.tokens for size in sizes_of(data)}
        for letters, most in (("t", "max_positions"), ("p", "max_positions"), ("v", "max_video"),
                              ("a", "max_audio"), (JCT_ORDER, "max_jct")):
            total = sum(tokens[letter] for letter in letters)
            if total > m[most]:
                names = " + ".join(f"data.{LENGTHS[letter]}" for letter in letters)
                raise UserError(f"{names} makes {total} tokens with the global ones, which exceeds "
                                f"model.{most} {m[most]}; lower the former or raise the latter.")
        if data.eval_text_length > data.text_length:
            raise UserError(f"data.eval_text_length {data.eval_text_length} exceeds "
                            f"data.text_length {data.text_length}, where the table's positions "
                            "begin; raise the latter.")

    @classmethod
    def facts(cls, config):
        """See `Task.facts`."""
        m = config.model
        return [", ".join(MODALITIES[letter] for letter in m.modalities),
                f"{m.layers} layers per encoder, {m.jct_layers} joint layers", m.dtype]

    @classmethod
    def bert_start(cls, config, params):
        """Titles, and the words that are predicted; see `Task.bert_start`."""
        m, seen = config.model, config.copy_and_resolve_references().unlock()
        seen.model.update(text_width=m.width, text_layers=m.layers, fusion_layers=0)
        return seen, {theirs: params[ours[0]] for theirs, ours in bert_names(m.layers).items()
                      if ours[0] in params}

    @classmethod
    def with_bert(cls, params, filled):
        """A table that has layers or words of its own starts with those of the title."""
        names = bert_names(sum(part.startswith("text_") for part in filled))
        return params | {ours: filled[theirs] for theirs in filled for ours in names[theirs]
                         if ours in params}

    def init_boxed(self, rng):
        """See `Task.init_boxed`; the weights are drawn with `model.init_std`."""
        blank = {name: jnp.ones((1, *one.shape), one.dtype) for name, one in self._example.items()}
        with initial_std(self.model.config.init_std):
            return self.model.init(rng, blank)["params"]

    def shown_part(self, key, group):
        """A group of which `objective.withheld` is not seen."""
        share = self.objective.withheld
        if not share:
            return group
        has_bm = jnp.stack([group[f"{MODALITIES[m]}_present"] for m in self.modalities], axis=1)
        kept_bm = scale.draw_kept(key, has_bm, share)
        return withheld(group, {m: kept_bm[:, i] for i, m in enumerate(self.modalities)})

    def present(self, arrays):
        """bool `[b, m]`, what an example has, None where missing values count like others."""
        if self.model.config.missing_policy == "zero_attend":
            return None
        return jnp.stack([arrays[f"{MODALITIES[m]}_present"] for m in self.modalities], axis=1)

    def scores(self, features, arrays):
        """`objectives.scale.Scores` of a feature `[b, p]` of each modality, a dict by letter."""
        stacked_bmp = jnp.stack([features[m] for m in self.modalities], axis=1)
        scores = scale.harmonised_scores(stacked_bmp, self.present(arrays),
                                         self.objective.get("simcl_row_norm", True))
        return scores if self.objective.get("simcl_gradient", True) else jax.lax.stop_gradient(
            scores)


class ScalePretrain(ScaleTask):
    """Masked words, entities, regions, frames and audio, and contrast, weighted by scores."""

    OBJECTIVE = ScaleTask.OBJECTIVE | dict(
        mlm=1.0, mem=1.0, mrp=1.0, mfp=1.0, mam=1.0, cl=1.0,  # weights of the losses; 0: without
        temperature=0.07, cl_reduction="mean",  # over pairs of modalities; 'sum' in the paper
        simcl_mode="logit",  # what scores multiply: 'logit', 'loss', 'off' for nothing
        simcl_row_norm=True,
        # Through scores too, as in the public code. From scratch a model then learns that features
        # which do not agree weigh nothing.
        simcl_gradient=True,
        mask_rate=0.15, mask_replace=(0.8, 0.1, 0.1),  # of a title's words
        region_zeroed=0.9,  # share of masked regions; the others stay as they are
        # Predicted words of a text, at most; 0: their mean plus six deviations.
        title_budget=0, table_budget=0)

    def __init__(self, config):
        super().__init__(config)
        self.model = Scale(config.model, sizes_of(config.data))
        self._special_ids = {name: config.model[name] for name in ("pad_id", "cls_id", "mask_id")}

    @classmethod
    def check(cls, config):
        """See `Task.check`."""
        super().check(config)
        check_mask_shares(config)

    @classmethod
    def shown(cls, config):
        """See `Task.shown`."""
        rows, words = 2 * config.group_size - 1, config.model.vocab_size
        alike = {"cl": (math.log(rows), f"dashed: all {rows:,} candidates alike"),
                 **dict.fromkeys(("mlm", "mem"), (math.log(words), f"dashed: all {words:,} words "
                                                  "alike"))}
        titles = {"cl": "Contrastive loss", "mlm": "Masked words of titles (MLM)",
                  "mem": "Masked entities of tables (MEM)", "mrp": "Masked regions (MRP)",
                  "mfp": "Masked frames (MFP)", "mam": "Masked audio (MAM)"}
        names = ["cl"] * (len(config.model.modalities) > 1) + [
            LOSSES[m] for m in config.model.modalities]
        return [Shown("loss", "loss"), *(
            Shown(name, name, titles[name], blind=alike.get(name, (None,))[0],
                  note=alike.get(name, ("", ""))[1])
            for name in names if config.objective[name])]

    @classmethod
    def flops(cls, config):
        """See `models.flops.scale_step`."""
        return flops.scale_step(config.model, sizes_of(config.data), config.group_size)

    @classmethod
    def from_other(cls, name):
        """From ALBEF: its text encoder reads titles, blocks of its ViT are the JCT's."""
        if name != "pretrain":
            return None
        return Rule(from_albef, {
            **dict.fromkeys((("vision_proj",), ("text_proj",), ("itm_head",), ("temp",)),
                            "no such head here"),
            ("visual_encoder",): "not a block that the JCT has", ("teacher",): "no teacher here",
            ("text_encoder",): "no fusion layers here"}, {"jct_heads": "vit_heads"})

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`. `draws`: by letter, as `draw` gives them."""
        del teacher, memory, schedule
        masking_key, dropout_key = jax.random.split(key)
        group = self.shown_part(jax.random.fold_in(masking_key, 1), group)
        masked, predicted = self.mask(group, self.draw(masking_key, group) if draws is None
                                      else draws)
        encoded = self.model.apply({"params": params}, masked, deterministic=False,
                                   method=Scale.encode, rngs={"dropout": dropout_key})
        contrast = self._contrast(encoded, group)
        joint = self.scores({m: x[:, 0] for m, x in encoded.joint.items()}, group)
        tasks = self._masked_tasks(params, encoded, group, predicted, joint)
        losses = {"cl": contrast["loss"]} | {LOSSES[m]: one["loss"] for m, one in tasks.items()}
        total = sum(self.objective[name] * loss for name, loss in losses.items())
        trust = jnp.mean(jnp.diagonal(joint.normalised, axis1=1, axis2=2), axis=0)
        metrics = {"loss": total, **losses,
                   **{f"weight_{MODALITIES[m]}": trust[i] for i, m in enumerate(self.modalities)}}
        for m in set(WORDS) & set(tasks):
            metrics[f"{LOSSES[m]}_accuracy"] = tasks[m]["accuracy"]
            metrics[f"{LOSSES[m]}_overflow_per_group"] = tasks[m]["overflow"]
        record = {"masked": masked, "predicted": predicted, "encoded": encoded,
                  "contrast": contrast, "joint_scores": joint, "tasks": tasks}
        return total, Aux(metrics, {}, record)

    def draw(self, key, arrays):
        """The random choices of masking a batch, by letter; see `objectives.scale` and
        `objectives.masking`."""
        o, keys = self.objective, dict(zip(MODALITIES, jax.random.split(key, len(MODALITIES))))
        draws = {}
        for m in self.modalities:
            shape = arrays[f"{MODALITIES[m]}_mask"].shape
            if m == "t":
                draws[m] = masking.draw_masking(keys[m], shape, self.model.config.vocab_size,
                                                o.mask_rate, tuple(o.mask_replace))
            elif m == "p":  # a pair has at least one word, so there are no more pairs than words
                draws[m] = scale.draw_entities(keys[m], shape, o.mask_rate)
            else:
                draws[m] = masking.draw_features(keys[m], shape, o.mask_rate,
                                                 o.region_zeroed if m == "i" else 1.0)
        return draws

    def mask(self, arrays, draws):
        """A batch with what was drawn masked, and by letter bool `[b, l]` of what to predict.

        Of a missing value nothing is predicted where `missing_policy` is 'zero_mask'.
        """
        masked, predicted, present = dict(arrays), {}, self.present(arrays)
        for i, m in enumerate(self.modalities):
            name = MODALITIES[m]
            mask = arrays[f"{name}_mask"]
            if present is not None:
                mask = mask * present[:, i, None]
            if m == "t":
                inner = draws[m]._replace(chosen=draws[m].chosen & masking.inner_words(mask))
                masked["title_ids"], predicted[m] = masking.mask_tokens(
                    arrays["title_ids"], inner, **self._special_ids)
            elif m == "p":
                masked["table_ids"], predicted[m] = scale.mask_entities(
                    arrays["table_ids"], arrays["table_entity"] * mask, draws[m],
                    self._special_ids["mask_id"])
            else:
                masked[name], predicted[m] = masking.mask_features(arrays[name], mask, draws[m])
        return masked, predicted

    def predict_fns(self):
        """Functions of the parameters and of a batch's arrays by name, without dropout.

        `encode`: by letter the projections `[b, p]`, as `joint_LETTER` the joint CLS tokens
        `[b, d]`, and S'' of the latter and of the former as `scores` and `scores_contrast`
        `[b, m, m]`. `words`: logits `[b, l, v]` of titles and tables. All float32.
        """
        def encode(params, **arrays):
            encoded = self.model.apply({"params": params}, arrays, method=Scale.encode)
            cls = {m: x[:, 0].astype(jnp.float32) for m, x in encoded.joint.items()}
            return {**encoded.projected, **{f"joint_{m}": x for m, x in cls.items()},
                    "scores": self.scores(cls, arrays).normalised,
                    "scores_contrast": self.scores(encoded.projected, arrays).normalised}

        def words(params, **arrays):
            encoded = self.model.apply({"params": params}, arrays, method=Scale.encode)
            states = self._head_input(encoded)
            return {MODALITIES[m]: self.predict_masked(params, m, states[m])
                    for m in WORDS if m in states}

        return {"encode": encode, "words": words}

    def predict_masked(self, params, letter, states):
        """The masked head of a modality: states `[..., d]` -> float32 logits or features."""
        return self.model.apply({"params": params}, letter, states, method=Scale.predict)

    def _head_input(self, encoded):
        return encoded.joint if self.model.config.masked_head_input == "jct" else encoded.unimodal

    def _contrast(self, encoded, group):
        o = self.objective
        if not o.cl or len(self.modalities) < 2:
            return {"loss": jnp.zeros(())}
        features_bmp = jnp.stack([encoded.projected[m] for m in self.modalities], axis=1)
        scores = self.scores(encoded.projected, group)
        losses = scale.pair_losses(features_bmp, scores.normalised, o.temperature, o.simcl_mode,
                                   self.present(group))
        reduced = jnp.mean(losses) if o.cl_reduction == "mean" else jnp.sum(losses)
        return {"loss": reduced, "pair_losses": losses, "scores": scores}

    def _masked_tasks(self, params, encoded, group, predicted, scores):
        """By letter the loss of the masked task, and what else its metrics are made of."""
        states, tasks = self._head_input(encoded), {}
        for i, m in enumerate(self.modalities):
            if not self.objective[LOSSES[m]]:
                continue
            weight_b = scores.normalised[:, i, i]
            task = self._words_task if m in WORDS else self._features_task
            tasks[m] = task(params, m, states[m], group, predicted[m], weight_b)
        return tasks

    def _words_task(self, params, letter, states_bld, group, predicted_bl, weight_b):
        """The head runs on the words to predict only, a number of each text that is fixed."""
        o, ids_bl = self.objective, group[f"{MODALITIES[letter]}_ids"]
        budget = o[f"{MODALITIES[letter]}_budget"] or masking.default_budget(
            1, ids_bl.shape[1], o.mask_rate)
        positions_bk, used_bk, overflow_b = jax.vmap(
            lambda row: masking.masked_positions(row, budget))(predicted_bl)
        logits_bkv = self.predict_masked(params, letter, jnp.take_along_axis(
            states_bld, positions_bk[..., None], axis=1))
        if o.simcl_mode == "logit":
            logits_bkv = logits_bkv * weight_b[:, None, None]
        labels_bk = jnp.take_along_axis(ids_bl, positions_bk, axis=1)
        loss_bk = optax.softmax_cross_entropy_with_integer_labels(logits_bkv, labels_bk)
        if o.simcl_mode == "loss":
            loss_bk = loss_bk * weight_b[:, None]
        labelled_bk = jnp.take_along_axis(logits_bkv, labels_bk[..., None], axis=-1)[..., 0]
        correct_bk = labelled_bk >= jnp.max(logits_bkv, axis=-1)
        return {"loss": masking.weighted_mean(loss_bk, used_bk), "positions": positions_bk,
                "used": used_bk, "logits": logits_bkv, "overflow": jnp.sum(overflow_b),
                "accuracy": masking.weighted_mean(correct_bk, used_bk)}

    def _features_task(self, params, letter, states_bld, group, predicted_bl, weight_b):
        """The targets are the features before masking."""
        mode = self.objective.simcl_mode
        features = self.predict_masked(params, letter, states_bld[:, 1:])
        if mode == "logit":
            features = features * weight_b[:, None, None]
        loss = scale.squared_error(features, group[MODALITIES[letter]], predicted_bl,
                                   weight_b if mode == "loss" else None)
        return {"loss": loss, "features": features}


def bert_names(layers):
    """Part of ALBEF's text encoder -> the parts of ours that are like it, the title's first."""
    return {"embeddings": ("embeddings_title", "embeddings_table"), "head": ("masked_heads_words",),
            **{f"text_{i}": (f"encoders_title_{i}", f"encoders_table_{i}") for i in range(layers)}}


def from_albef(path):
    """An `Origin` in ALBEF's pre-training; see `ScalePretrain.from_other`."""
    part, name, *rest = path
    number = name.rpartition("_")[2]
    if name in ("embeddings_title", "masked_heads_words"):
        place = "embeddings" if name == "embeddings_title" else "head"
    elif name.startswith("encoders_title_"):
        place = f"text_{number}"
    elif name.startswith("jct_") and number.isdigit():
        return (part, "visual_encoder", f"block_{number}", *rest)
    else:
        return "not in ALBEF"
    return (part, "text_encoder", place, *rest)
