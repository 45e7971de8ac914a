"""What pre-training and retrieval share: ITC, ITM and the momentum queues (ALBEF section 3.2)."""

import functools
import math

import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models import flops, gradcam
from albef_jax.models.albef import Albef
from albef_jax.models.packing import overflow
from albef_jax.objectives import contrastive, distillation, matching
from albef_jax.tasks.albef import AlbefTask
from albef_jax.tasks.base import Shown

TEACHER_PARTS = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
ITM_ADVICE = ("random negatives among the hard ones (objective.random_negatives) let it learn; see "
              "docs/training.md, “When ITM does not learn”")
NO_IMAGE = -1  # in the queue of image ids
ALIGNED = dict(
    temperature=0.07, momentum=0.995,
    queue_size=65536,  # past features that ITC compares with; 0: the own group only
    negatives="hard",  # 'random'
    random_negatives=0.0,  # share of the hard negatives that are random all the same
    random_steps=0,  # over which that share falls from 1 to it
    match_weight=1.0,  # of a true pair in ITM, whose two negatives have 1 each; 2.0 balances them
    alpha_itc=0.4,
    alpha_ramp_steps=-1,  # -1: one epoch
    text_budget=0.0)  # share of text positions that training computes, see models.packing; 0: all


class Aligned(AlbefTask):
    """An `Albef` model whose unimodal features are compared and whose fusion says match or not."""

    module = Albef
    step_flops = staticmethod(flops.retrieval_step)
    smaller = ("objective.queue_size", *AlbefTask.smaller)
    alphas = ("alpha_itc",)  # names of the teacher's weights in `config.objective`

    def __init__(self, config):
        super().__init__(config)
        self.model = self.module(config.model, text_budget=self.objective.text_budget)
        # 'pair', or 'image' where texts of the same image are positives too; are features compared?
        self.positives = self.objective.get("positives", "image")
        self.itc = self.objective.get("itc", True)
        self._has_queue = self.itc and self.objective.queue_size > 0

    @classmethod
    def check(cls, config):
        super().check(config)
        o = config.objective
        if o.get("itc", True) and o.queue_size % config.batch_size:
            raise UserError(
                f"objective.queue_size {o.queue_size} is not a multiple of batch_size "
                f"{config.batch_size}; set queue_size to "
                f"{max(o.queue_size // config.batch_size, 1) * config.batch_size}.")
        if o.negatives == "random" and (o.random_negatives or o.random_steps):
            raise UserError("objective.random_negatives and random_steps say how many of the hard "
                            "negatives are random, but objective.negatives is 'random'; set it to "
                            "'hard', or them to 0.")

    @classmethod
    def shown(cls, config):
        candidates = config.group_size + config.objective.queue_size
        itm_loss, itm_accuracy = matching.knowing_nothing(config.objective.match_weight)
        return [Shown("loss", "loss"),
                Shown("itc", "itc", "Contrastive loss (ITC)", blind=math.log(candidates),
                      note=f"dashed: all {candidates:,} candidates alike"),
                Shown("itm", "itm", "Matching loss (ITM)", blind=itm_loss,
                      note="dashed: the same for every pair", advice=ITM_ADVICE,
                      blind_accuracy=("itm_accuracy", itm_accuracy))]

    @classmethod
    def flops(cls, config):
        return cls.step_flops(config.model, config.objective, config.data.text_length,
                              config.group_size)

    def init_memory(self, rng):
        """Two queues `[q, e]`, the row to write next, and image ids where they are compared.

        Empty without ITC, and with `queue_size=0`, where the own group has all candidates.
        """
        size, width = self.objective.queue_size, self.model.config.embed_dim
        if not self._has_queue:
            return {}
        image_key, text_key = jax.random.split(rng)
        ids = {"id_queue": jnp.full((size,), NO_IMAGE, jnp.int32)} if (
            self.positives == "image") else {}
        return {"image_queue": contrastive.init_queue(image_key, size, width),
                "text_queue": contrastive.init_queue(text_key, size, width),
                "pointer": jnp.zeros((), jnp.int32), **ids}

    def teacher_of(self, params):
        return {name: params[name] for name in TEACHER_PARTS}

    def schedule(self, step):
        o = self.objective
        values = {name: distillation.alpha_at(step, o[name], o.alpha_ramp_steps)
                  for name in self.alphas}
        if o.random_negatives or o.random_steps:
            values["random_negatives"] = matching.random_share_at(step, o.random_negatives,
                                                                  o.random_steps)
        return values

    def update_memory(self, memory, enqueue):
        """Writes the momentum features over the oldest entries and moves the pointer."""
        if not memory:
            return memory
        pointer = memory["pointer"]
        rows = {name: contrastive.enqueue(memory[name], entries, pointer)
                for name, entries in enqueue.items()}
        batch = enqueue["image_queue"].shape[0]
        return {**rows, "pointer": (pointer + batch) % self.objective.queue_size}

    def with_new_data(self, memory):
        """Features stay; image ids are numbers of the data before."""
        if "id_queue" not in memory:
            return memory
        return memory | {"id_queue": jnp.full_like(memory["id_queue"], NO_IMAGE)}

    def predict_fns(self):
        """Functions of the online parameters and of arrays by name, without dropout.

        What they give: see the methods of `models.albef.Albef`, and `models.gradcam` for heat maps.
        """
        return {
            "encode_image": lambda params, image: self.apply(params, Albef.encode_image, image),
            "encode_text": lambda params, text_ids, text_mask: self.apply(
                params, Albef.encode_text, text_ids, text_mask),
            "match": lambda params, image_embeds, text_embeds, text_mask: self.apply(
                params, Albef.match, image_embeds, text_embeds, text_mask),
            "itm_heat": functools.partial(gradcam.itm_heat, self.model),
            "itc_heat": functools.partial(gradcam.itc_heat, self.model)}

    def _itc(self, temperature, online, momentum, memory, group, schedule):
        o, b = self.objective, online["image_feat"].shape[0]
        if not self.itc:
            zero, alike_bb = jnp.zeros(()), jnp.zeros((b, b))
            return {"loss": zero, "mi_bound": zero, "positives_bb": jnp.eye(b, dtype=bool),
                    "i2t": alike_bb, "t2i": alike_bb}
        if self.positives == "image":
            positives = contrastive.image_positives(
                group["image_id"], memory.get("id_queue", jnp.zeros((0,), jnp.int32)))
        else:
            positives = contrastive.pair_positives(b, o.queue_size)

        def compared(own, other):
            """Logits and targets of one modality over the candidates of the other."""
            keys = momentum[f"{other}_feat"]
            past = memory.get(f"{other}_queue", jnp.zeros((0, keys.shape[-1])))
            logits, logits_m = (
                contrastive.similarity_logits(features[f"{own}_feat"], keys, past, temperature)
                for features in (online, momentum))
            return logits, contrastive.itc_targets(positives, logits_m, schedule["alpha_itc"])

        i2t, i2t_targets = compared("image", "text")
        t2i, t2i_targets = compared("text", "image")
        bound = (contrastive.mi_bound(i2t, positives) + contrastive.mi_bound(t2i, positives)) / 2
        return {"loss": contrastive.itc_loss(i2t, t2i, i2t_targets, t2i_targets),
                "mi_bound": bound, "positives_bb": positives[:, :b],
                "i2t": i2t, "t2i": t2i, "i2t_targets": i2t_targets, "t2i_targets": t2i_targets}

    def _negatives(self, itc, keys, draws, schedule):
        if draws is not None:
            return {"image": draws.negative_image_b, "text": draws.negative_text_b}
        positives_bb = itc["positives_bb"]
        share = 1.0 if self.objective.negatives == "random" else (
            schedule.get("random_negatives", 0.0))
        t2i_bb, i2t_bb = (itc[side][:, :len(positives_bb)] for side in ("t2i", "i2t"))
        return {"image": matching.sample_negatives(keys["image"], t2i_bb, positives_bb, share),
                "text": matching.sample_negatives(keys["text"], i2t_bb, positives_bb, share)}

    def _itm(self, params, states_sbd, itc, negatives):
        """Matching, other text, other image: fusion states at [CLS] `[3, b, d]`."""
        logits_sb2 = self.apply(params, Albef.itm_logits, states_sbd)
        valid_b = matching.has_negative(itc["positives_bb"])
        none_b = jnp.zeros_like(negatives["text"])
        labels_sb = jnp.stack([none_b + 1, none_b, none_b])
        true_b = jnp.full_like(valid_b, self.objective.match_weight)
        weights_sb = jnp.stack([true_b, valid_b, valid_b])
        return {"logits": logits_sb2,
                "loss": matching.itm_loss(logits_sb2, labels_sb, weights_sb),
                "accuracy": matching.itm_accuracy(logits_sb2, labels_sb, weights_sb)}

    def _overflow(self, *masks):
        """Tokens of a group that `text_budget` has no room for, where there is one."""
        share = self.objective.text_budget
        return {"text_overflow_per_group": sum(overflow(mask, share) for mask in masks)} if (
            share) else {}

    def _enqueue(self, momentum, group):
        if not self._has_queue:
            return {}
        rows = {"image_queue": momentum["image_feat"], "text_queue": momentum["text_feat"]}
        if self.positives == "image":
            rows["id_queue"] = group["image_id"]
        return rows
