"""ImageBERT pre-training: MLM, MOC, MRFR and ITM in one pass (arXiv:2001.07966, section 4)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from albef_jax.data.fields.number import NumberField
from albef_jax.data.fields.regions import DetectedRegionsField, GlobalFeatureField
from albef_jax.data.fields.text import TextField
from albef_jax.errors import UserError
from albef_jax.models import flops
from albef_jax.models.imagebert import ImageBert, region_part, text_part
from albef_jax.models.layers import initial_std
from albef_jax.models.stack import REMAT_POINTS
from albef_jax.objectives import imagebert, masking
from albef_jax.tasks.base import Aux, Rule, Shown, Task, check_mask_shares, same

MODEL = dict(
    text_width=768, text_layers=12, text_heads=12, text_mlp_width=3072,  # of the one stream
    max_positions=512, dropout=0.1, attention_dropout=0.1, dtype="bfloat16", init_std=0.02,
    classes=1600,  # of objects, without background
    final_sep=True,  # a second [SEP], after the regions
    scan=False, remat=False, remat_save=(),  # see `tasks.albef.MODEL`
    # Set from the tokenizer when training starts.
    vocab_size=30522, pad_id=0, cls_id=101, sep_id=102, mask_id=103)
INIT = dict(bert="", bert_layers=(), bert_tie=False)  # see `tasks.albef.INIT`
OPTIMIZER = dict(
    peak_lr=1e-4, min_lr=0.0, warmup_lr=0.0, warmup_share=0.1, warmup_steps=0, schedule="linear",
    weight_decay=0.01, clip="global")
# The paper's 144 columns: these, 100 regions and a final [SEP].
TEXT_LENGTH = 43
WORDS, REGIONS = ("text_ids", "text_mask"), (
    "regions", "regions_box", "regions_mask", "regions_class", "global_feature")
LOSSES = ("mlm", "moc", "mrfr", "itm")
TITLES = {"mlm": "Masked-word loss (MLM)", "moc": "Masked-class loss (MOC)",
          "mrfr": "Masked-feature loss (MRFR)", "itm": "Matching loss (ITM)"}
REMAT = {"model.remat": True, "model.remat_save": ()}


class ImageBertTask(Task):
    """What ImageBERT's tasks share: pairs of a text and the regions of an image.

    Attributes:
      OBJECTIVE: defaults of the block `objective`. pretraining: see `models.imagebert.ImageBert`.
    """

    OBJECTIVE: dict = {}
    pretraining = True
    limits = {
        **{f"model.{name}": (1, 2**20) for name in (
            "text_width", "text_heads", "text_mlp_width", "max_positions", "vocab_size",
            "classes")},
        "model.text_layers": (1, 1024), "model.init_std": (0.0, 1.0),
        **{f"model.{name}": (0, None) for name in ("pad_id", "cls_id", "sep_id", "mask_id")},
        "init.bert_layers": (-1, None), "objective.mask_replace": (0.0, 1.0),
        "data.global_width": GlobalFeatureField.limits["global_width"],  # without the field too
        "model.dropout": (0.0, 1.0), "model.attention_dropout": (0.0, 1.0),
        **{f"objective.{name}": (0.0, None) for name in LOSSES},
        "objective.mask_rate": (0.0, 1.0), "objective.region_zeroed": (0.0, 1.0),
        "objective.negative_share": (0.0, 1.0), "objective.mlm_budget": (0, None),
        "objective.region_budget": (0, None),
        "objective.negatives_per_pair": (1, None), "objective.margin": (0.0, None),
        **{f"objective.{name}": (0.0, None) for name in ("binary", "multiclass", "triplet")}}
    choices = {"model.dtype": ("float32", "bfloat16"), "model.remat_save": REMAT_POINTS,
               "objective.masking": tuple(imagebert.MASKINGS),
               "objective.masked_losses_on": ("positives", "all")}
    free_keys = ("model.scan", "model.remat", "model.remat_save")
    lighter = (
        {"model.remat": True, "model.remat_save": ("qkv", "attention")}, REMAT,
        {"accumulation": 2}, REMAT | {"accumulation": 2}, REMAT | {"accumulation": 4},
        REMAT | {"mesh.fsdp": 4}, REMAT | {"mesh.fsdp": 8})

    def __init__(self, config):
        self.objective = config.objective
        self.regions = config.data.regions_length
        self.model = ImageBert(config.model, config.data.regions_width,
                               config.data.global_width, self.pretraining)
        self._example = {name: one for field in self.fields(config).values()
                         for name, one in field.spec().items()}

    @classmethod
    def defaults(cls):
        return dict(model=MODEL, init=INIT, objective=cls.OBJECTIVE, optimizer=OPTIMIZER, data={
            **TextField.defaults, **DetectedRegionsField.defaults, **GlobalFeatureField.defaults,
            "text_length": TEXT_LENGTH, "max_words": TEXT_LENGTH, "sep": True})

    @classmethod
    def fields(cls, config):
        fields = {"text": TextField(config.data, config.model),
                  "regions": DetectedRegionsField(config.data, config.model.classes),
                  "image_id": NumberField("image_id")}
        if config.data.global_width:
            fields["global_feature"] = GlobalFeatureField(config.data)
        return fields

    @classmethod
    def check(cls, config):
        m, data = config.model, config.data
        if m.text_width % m.text_heads:
            raise UserError(f"model.text_width {m.text_width} is not a multiple of "
                            f"model.text_heads {m.text_heads}; change one of them.")
        for name in ("text_length", "eval_text_length"):
            if data[name] + m.final_sep > m.max_positions:
                raise UserError(
                    f"data.{name} {data[name]} and a final [SEP] exceed model.max_positions "
                    f"{m.max_positions}; lower the first or raise the last.")
        if not data.sep:
            raise UserError("data.sep is False, but words end with [SEP] before the regions "
                            "begin; set it to True.")

    @classmethod
    def facts(cls, config):
        m, data = config.model, config.data
        return [f"{data.regions_length} regions", f"{m.text_layers} layers", m.dtype]

    @classmethod
    def bert_start(cls, config, params):
        """See `Task.bert_start`: the one stream, which has no fusion layers."""
        seen = config.copy_and_resolve_references().unlock()
        seen.model.fusion_layers = 0
        return seen, params["bert"]

    @classmethod
    def with_bert(cls, params, filled):
        return {**params, "bert": filled}

    def init_boxed(self, rng):
        """See `Task.init_boxed`; the weights are drawn with `model.init_std`."""
        # Two words and two regions will do.
        blank = {name: jnp.ones((1, *one.shape), one.dtype)[:, :2]
                 for name, one in self._example.items() if one.shape}
        with initial_std(self.model.config.init_std):
            return self.model.init(rng, blank)["params"]

    def predict_fns(self):
        """Functions of the parameters and of a batch's arrays by name, without dropout.

        `embed_image` -> `[b, i, d]` and `embed_text` -> `[b, t, d]`: what `score` takes, which
        gives match logits `[b]`. `match`: these of whole pairs.
        """
        def apply(method, params, *arrays, **options):
            return self.model.apply({"params": params}, *arrays, **options, method=method)

        def embed_image(params, regions, regions_box, regions_mask, global_feature=None):
            return apply(ImageBert.embed_image, params, regions, regions_box, regions_mask,
                         global_feature)

        def embed_text(params, text_ids):
            return apply(ImageBert.embed_text, params, text_ids)

        def score(params, image_embeds, text_embeds, text_mask):
            return apply(ImageBert.score, params, image_embeds, text_embeds, text_mask)

        def match(params, text_ids, text_mask, regions, regions_box, regions_mask,
                  global_feature=None):
            images = embed_image(params, regions, regions_box, regions_mask, global_feature)
            return score(params, images, embed_text(params, text_ids), text_mask)

        return {"embed_image": embed_image, "embed_text": embed_text, "score": score,
                "match": match}

    def paired(self, group, text_r, image_r):
        """Rows of a group's arrays: the texts `text_r` with the images `image_r`, int32 `[r]`."""
        return ({name: group[name][text_r] for name in WORDS}
                | {name: group[name][image_r] for name in REGIONS if name in group})

    def _encode(self, params, arrays, key):
        return self.model.apply({"params": params}, arrays, deterministic=False,
                                method=ImageBert.encode, rngs={"dropout": key})


class ImageBertDraws(NamedTuple):
    """The random choices of one group, for replaying a recorded step.

    What `conditional` masking leaves out is not chosen in `words` and `regions`.
    """

    pairs: imagebert.PairDraws
    words: masking.MaskingDraws
    regions: masking.FeatureDraws


class ImageBertPretrain(ImageBertTask):
    """See `tasks.base.Task`; the switches of the paper's ablations are in `config.objective`,
    `data.regions_length` and `data.global_width`."""

    OBJECTIVE = dict(
        mlm=1.0, moc=1.0, mrfr=1.0, itm=1.0,  # weights of the losses; 0: without
        masking="joint",  # 'conditional': only words or only regions of a pair
        mask_rate=0.15, mask_replace=(0.8, 0.1, 0.1),
        region_zeroed=0.9,  # share of masked regions; the others stay as they are
        negative_share=0.5,  # of the pairs
        masked_losses_on="positives",  # 'all' pairs
        # Predicted words and regions of a group, at most; 0: the mean plus six deviations.
        mlm_budget=0, region_budget=0)

    @classmethod
    def check(cls, config):
        super().check(config)
        check_mask_shares(config)

    @classmethod
    def shown(cls, config):
        share, words, classes = (config.objective.negative_share, config.model.vocab_size,
                                 config.model.classes)
        blind = {"mlm": (math.log(words), f"dashed: all {words:,} words alike"),
                 "moc": (math.log(classes), f"dashed: all {classes:,} classes alike"),
                 "itm": (entropy(share), "dashed: the same answer for every pair")}
        return [Shown("loss", "loss"), *(
            Shown(name, name, TITLES[name], blind=blind.get(name, (None,))[0],
                  note=blind.get(name, ("", ""))[1])
            for name in LOSSES if config.objective[name])]

    @classmethod
    def flops(cls, config):
        """See `models.flops.imagebert_pretrain_step`."""
        return flops.imagebert_pretrain_step(config.model, config.data)

    @classmethod
    def from_other(cls, name):
        """From another pre-training of ImageBERT."""
        return Rule(same, {}) if name == "imagebert_pretrain" else None

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`; `draws`: `ImageBertDraws`."""
        del teacher, memory, schedule
        draw_key, dropout_key = jax.random.split(key)
        draws = self.draw(draw_key, group) if draws is None else draws
        pairs = self.paired(group, draws.pairs.text_b, draws.pairs.image_b)
        masked, predicted = self.mask(pairs, draws)
        matched_b = draws.pairs.text_b == draws.pairs.image_b
        counted_b = matched_b | (self.objective.masked_losses_on == "all")
        states = self._encode(params, masked, dropout_key)
        tasks = (self._words_task(params, states, pairs, predicted["words"] & counted_b[:, None])
                 | self._regions_tasks(params, states, pairs,
                                       predicted["regions"] & counted_b[:, None])
                 | {"itm": self._itm(params, states, matched_b)})
        losses = {name: tasks[name]["loss"] for name in LOSSES}
        total = weighted_sum(self.objective, losses)
        metrics = {"loss": total, **losses,
                   **{f"{name}_accuracy": tasks[name]["accuracy"]
                      for name in ("mlm", "moc", "itm")},
                   **{f"{name}_overflow_per_group": tasks[name]["overflow"]
                      for name in ("mlm", "moc")}}
        record = {"masked": masked, "predicted": predicted, "matched": matched_b,
                  "states": states, "tasks": tasks}
        return total, Aux(metrics, {}, record)

    def draw(self, key, group):
        """The random choices of a group: `ImageBertDraws`."""
        o, keys = self.objective, jax.random.split(key, 4)
        words = masking.draw_masking(keys[1], group["text_ids"].shape,
                                     self.model.config.vocab_size, o.mask_rate,
                                     tuple(o.mask_replace))
        regions = masking.draw_features(keys[2], group["regions_mask"].shape, o.mask_rate,
                                        o.region_zeroed)
        return ImageBertDraws(
            imagebert.draw_pairs(keys[0], group["image_id"], o.negative_share),
            *imagebert.MASKINGS[o.masking](keys[3], words, regions))

    def mask(self, pairs, draws):
        """Pairs with what was drawn masked, and bool `[b, l]` of `words` and `regions` to predict.
        """
        m, masked, predicted = self.model.config, dict(pairs), {}
        inner = draws.words._replace(
            chosen=draws.words.chosen & masking.inner_words(pairs["text_mask"]))
        masked["text_ids"], predicted["words"] = masking.mask_tokens(
            pairs["text_ids"], inner, pad_id=m.pad_id, cls_id=m.cls_id, mask_id=m.mask_id)
        masked["regions"], predicted["regions"] = masking.mask_features(
            pairs["regions"], pairs["regions_mask"], draws.regions)
        return masked, predicted

    def _words_task(self, params, states_bld, pairs, counted_bt):
        """The head runs on the words to predict only, a number that is fixed."""
        texts, length = counted_bt.shape
        chosen = Chosen.of(counted_bt, self.objective.mlm_budget or masking.default_budget(
            texts, length, self.objective.mask_rate))
        states_md = chosen.rows(text_part(states_bld, length))
        return {"mlm": self._classified(params, ImageBert.words, states_md,
                                        chosen.rows(pairs["text_ids"]), chosen)}

    def _regions_tasks(self, params, states_bld, pairs, counted_bn):
        images, regions = counted_bn.shape
        chosen = Chosen.of(counted_bn, self.objective.region_budget or masking.default_budget(
            images, regions + 1, self.objective.mask_rate))
        states_md = chosen.rows(region_part(states_bld, regions, self.model.config.final_sep))
        moc = self._classified(params, ImageBert.classes, states_md,
                               chosen.rows(pairs["regions_class"]), chosen)
        features_mf = self.model.apply({"params": params}, states_md, method=ImageBert.features)
        losses_m = imagebert.feature_losses(features_mf, chosen.rows(pairs["regions"]))
        mrfr = {"loss": masking.weighted_mean(losses_m, chosen.weights), "features": features_mf}
        return {"moc": moc, "mrfr": mrfr}

    def _classified(self, params, head, states_md, labels_m, chosen):
        """What is predicted at the chosen places; a label below 0 is not known."""
        logits_mk = self.model.apply({"params": params}, states_md, method=head)
        known_m = chosen.weights * (labels_m >= 0)
        labelled_m1 = jnp.take_along_axis(logits_mk, jnp.maximum(labels_m, 0)[:, None], axis=1)
        correct_m = labelled_m1[:, 0] >= jnp.max(logits_mk, axis=1)
        losses_m = imagebert.class_losses(logits_mk, labels_m)
        return {"loss": masking.weighted_mean(losses_m, known_m),
                "accuracy": masking.weighted_mean(correct_m, known_m), "logits": logits_mk,
                "overflow": chosen.overflow}

    def _itm(self, params, states_bld, matched_b):
        scores_b = self.model.apply({"params": params}, states_bld, method=ImageBert.score_states)
        return {"loss": imagebert.itm_loss(scores_b, matched_b), "scores": scores_b,
                "accuracy": jnp.mean((scores_b > 0) == matched_b)}

    def predict_fns(self):
        """As `ImageBertTask.predict_fns`, with what is predicted of arrays that are masked already.

        `words` -> logits `[b, t, v]`; `objects` -> class logits `[b, n, k]` and features
        `[b, n, f]` of the regions.
        """
        def states(params, arrays):
            return self.model.apply({"params": params}, arrays, method=ImageBert.encode)

        def words(params, **arrays):
            texts = text_part(states(params, arrays), arrays["text_ids"].shape[1])
            return self.model.apply({"params": params}, texts, method=ImageBert.words)

        def objects(params, **arrays):
            regions = region_part(states(params, arrays), arrays["regions"].shape[1],
                                  self.model.config.final_sep)
            return tuple(self.model.apply({"params": params}, regions, method=head)
                         for head in (ImageBert.classes, ImageBert.features))

        return super().predict_fns() | {"words": words, "objects": objects}


class Chosen(NamedTuple):
    """Places of `[b, l]` to predict, a list of fixed length m; see `masking.masked_positions`."""

    positions: jax.Array
    weights: jax.Array
    overflow: jax.Array

    @classmethod
    def of(cls, predicted_bl, budget):
        """`predicted_bl`: bool. `budget`: m."""
        return cls(*masking.masked_positions(predicted_bl, budget))

    def rows(self, values):
        """The values `[b, l, ...]` at the places, `[m, ...]`."""
        return values.reshape(-1, *values.shape[2:])[self.positions]


def weighted_sum(weights, losses):
    """The sum of losses, a dict of scalars; those of weight 0 send no gradient at all."""
    return sum(weights[name] * loss for name, loss in losses.items() if weights[name])


def entropy(share):
    """Binary cross-entropy of always saying how likely it is."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p)
