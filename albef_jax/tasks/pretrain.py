"""ALBEF pre-training: ITC + ITM + MLM with a momentum teacher (ALBEF section 3.2, 3.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models.albef import Albef, scale_initial_weights
from albef_jax.objectives import contrastive, distillation, masking, matching, queue
from albef_jax.tasks.base import Aux, Task

TEACHER_PARTS = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
SPECIAL_IDS = ("pad_id", "cls_id", "mask_id")


class PretrainDraws(NamedTuple):
    """The random choices of one group, for replaying a recorded step."""

    masking: masking.MaskingDraws
    negative_image_b: jax.Array  # int32: for text b, the image that does not match
    negative_text_b: jax.Array  # int32: for image b, the text that does not match


class Pretrain(Task):
    """See `tasks.base.Task`; every switch of the paper's ablation is in `config.objective`."""

    def __init__(self, config):
        self.objective = config.objective
        self.special_ids = {name: config.model[name] for name in SPECIAL_IDS}
        self.vocab_size = config.model.vocab_size
        self.embed_dim = config.model.embed_dim
        self.model = Albef(config.model)
        check_objective(config)
        self._has_queue = config.objective.itc and config.objective.queue_size > 0

    def init(self, rng):
        """See `Task.init`."""
        m = self.model.config
        image = jnp.zeros((1, m.image_size, m.image_size, 3), jnp.uint8)
        ids_bl = jnp.full((1, 2), m.cls_id, jnp.int32)
        params = self.model.init(rng, image, ids_bl, jnp.ones_like(ids_bl))["params"]
        params = scale_initial_weights(params, m.init_std)
        return {**params, "temp": jnp.asarray(self.objective.temperature, jnp.float32)}

    def init_memory(self, rng):
        """Two queues `[q, e]`, the row to write next, and image ids where they are compared.

        Empty without ITC, and with `queue_size=0`, where the own group has all candidates.
        """
        o = self.objective
        if not self._has_queue:
            return {}
        image_key, text_key = jax.random.split(rng)
        memory = {
            "image_queue": queue.init_queue(image_key, o.queue_size, self.embed_dim),
            "text_queue": queue.init_queue(text_key, o.queue_size, self.embed_dim),
            "pointer": jnp.zeros((), jnp.int32),
        }
        if o.positives == "image":
            memory["id_queue"] = jnp.full((o.queue_size,), -1, jnp.int32)
        return memory

    def prepare(self, params):
        """Clamps the temperature to [0.001, 0.5]."""
        return {**params, "temp": jnp.clip(params["temp"], 0.001, 0.5)}

    def teacher_of(self, params):
        """Both encoders with the MLM head, and the projections."""
        return {name: params[name] for name in TEACHER_PARTS}

    def schedule(self, step):
        """The weights of the teacher's targets."""
        o = self.objective
        return {name: distillation.alpha_at(step, o[name], o.alpha_ramp_steps)
                for name in ("alpha_itc", "alpha_mlm")}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`; the order of events is that of the public code."""
        keys = dict(zip(("masking", "image", "text", "encode", "fuse", "teacher"),
                        jax.random.split(key, 6)))
        masked = self._mask(group, keys["masking"], draws)
        online = self._encode(params, group, masked["ids"], keys["encode"])
        momentum = self._encode(teacher, group, masked["ids"], keys["teacher"])
        itc = self._itc(params["temp"], online, momentum, memory, group, schedule)
        negatives = self._negatives(itc, keys, draws)
        fused = self._fuse(params, group, online, masked, negatives, keys["fuse"])
        itm = self._itm(params, fused["itm_sbd"], itc, negatives)
        mlm = self._mlm(params, teacher, group, momentum, masked, fused["mlm_md"], schedule,
                        keys["teacher"])
        total = mlm["loss"] + itm["loss"] + itc["loss"]
        metrics = {"loss": total, "itc": itc["loss"], "itm": itm["loss"], "mlm": mlm["loss"],
                   "mi_bound": itc["mi_bound"], "itm_accuracy": itm["accuracy"],
                   "mlm_accuracy": mlm["accuracy"], "mlm_overflow": masked["overflow"],
                   "temperature": params["temp"], **schedule}
        record = {"online": online, "momentum": momentum, "masked": masked, "itc": itc,
                  "negatives": negatives, "itm": itm, "fused": fused}
        return total, Aux(metrics, self._enqueue(momentum, group), record)

    def update_memory(self, memory, enqueue):
        """Writes the momentum features over the oldest entries and moves the pointer."""
        if not memory:
            return memory
        pointer = memory["pointer"]
        rows = {name: queue.enqueue(memory[name], entries, pointer)
                for name, entries in enqueue.items()}
        batch = enqueue["image_queue"].shape[0]
        return {**rows, "pointer": (pointer + batch) % self.objective.queue_size}

    def predict_fns(self):
        """Functions of the online parameters, without dropout (signatures: `models.albef`)."""
        def bind(method):
            return lambda params, *args: self.model.apply({"params": params}, *args,
                                                          method=method)

        return {name: bind(getattr(Albef, name))
                for name in ("encode_image", "encode_text", "match", "mlm_logits")}

    def _apply(self, params, method, *args, key):
        return self.model.apply({"params": params}, *args, deterministic=False, method=method,
                                rngs={"dropout": key})

    def _mask(self, group, key, draws):
        o, ids_bl = self.objective, group["text_ids"]
        drawn = draws.masking if draws is not None else masking.draw_masking(
            key, ids_bl.shape, self.vocab_size, o.mask_rate, tuple(o.mask_replace))
        ids, predicted_bl = masking.mask_tokens(ids_bl, drawn, **self.special_ids)
        budget = o.mlm_budget or masking.default_budget(*ids_bl.shape, o.mask_rate)
        positions_m, weights_m, overflow = masking.masked_positions(predicted_bl, budget)
        return {"ids": ids, "predicted": predicted_bl, "positions": positions_m,
                "weights": weights_m, "overflow": overflow,
                "labels": ids_bl.reshape(-1)[positions_m]}

    def _encode(self, params, group, masked_ids_bl, key):
        """Both encoders on one group; the same for the online model and its teacher."""
        image_bnd, image_feat_be = self.model.apply(
            {"params": params}, group["image"], method=Albef.encode_image)
        text_bld, masked_bld = self._apply(
            params, Albef.encode_masked, group["text_ids"], masked_ids_bl, group["text_mask"],
            key=jax.random.fold_in(key, 0))
        text_feat_be = self.model.apply({"params": params}, text_bld, method=Albef.text_feature)
        return {"image": image_bnd, "image_feat": image_feat_be, "text": text_bld,
                "masked": masked_bld, "text_feat": text_feat_be}

    def _itc(self, temperature, online, momentum, memory, group, schedule):
        o, b = self.objective, online["image_feat"].shape[0]
        if not o.itc:
            zero = jnp.zeros(())
            return {"loss": zero, "mi_bound": zero, "positives_bb": jnp.eye(b, dtype=bool)}
        if o.positives == "image":
            positives = contrastive.image_positives(
                group["image_id"], memory.get("id_queue", jnp.zeros((0,), jnp.int32)))
        else:
            positives = contrastive.pair_positives(b, o.queue_size)

        def logits(feat, keys, queue_name):
            past = memory.get(queue_name, jnp.zeros((0, self.embed_dim)))
            return contrastive.similarity_logits(feat, keys, past, temperature)

        image_m, text_m = momentum["image_feat"], momentum["text_feat"]
        i2t = logits(online["image_feat"], text_m, "text_queue")
        t2i = logits(online["text_feat"], image_m, "image_queue")
        i2t_targets = contrastive.itc_targets(
            positives, logits(image_m, text_m, "text_queue"), schedule["alpha_itc"])
        t2i_targets = contrastive.itc_targets(
            positives, logits(text_m, image_m, "image_queue"), schedule["alpha_itc"])
        bound = (contrastive.mi_bound(i2t, positives) + contrastive.mi_bound(t2i, positives)) / 2
        return {"loss": contrastive.itc_loss(i2t, t2i, i2t_targets, t2i_targets),
                "mi_bound": bound, "positives_bb": positives[:, :b],
                "i2t": i2t, "t2i": t2i, "i2t_targets": i2t_targets, "t2i_targets": t2i_targets}

    def _negatives(self, itc, keys, draws):
        if draws is not None:
            return {"image": draws.negative_image_b, "text": draws.negative_text_b}
        kind, positives = self.objective.negatives, itc["positives_bb"]
        b = positives.shape[0]
        logits = {side: itc[side][:, :b] if self.objective.itc else jnp.zeros((b, b))
                  for side in ("t2i", "i2t")}
        return {
            "image": matching.sample_negatives(keys["image"], logits["t2i"], positives, kind),
            "text": matching.sample_negatives(keys["text"], logits["i2t"], positives, kind)}

    def _fuse(self, params, group, online, masked, negatives, key):
        """One fusion pass over four text sets: masked, matching, other text, other image."""
        text, mask, other = online["text"], group["text_mask"], negatives["text"]
        mlm_md, itm_sbd = self._apply(
            params, Albef.fuse_for_losses,
            jnp.stack([online["masked"], text, text[other], text]),
            jnp.stack([mask, mask, mask[other], mask]),
            online["image"], negatives["image"], masked["positions"], key=key)
        return {"mlm_md": mlm_md, "itm_sbd": itm_sbd}

    def _itm(self, params, states_sbd, itc, negatives):
        logits_sb2 = self.model.apply({"params": params}, states_sbd, method=Albef.itm_logits)
        valid_b = matching.has_negative(itc["positives_bb"])
        none_b = jnp.zeros_like(negatives["text"])
        labels_sb = jnp.stack([none_b + 1, none_b, none_b])
        weights_sb = jnp.stack([jnp.ones_like(valid_b), valid_b, valid_b])
        return {"logits": logits_sb2,
                "loss": matching.itm_loss(logits_sb2, labels_sb, weights_sb),
                "accuracy": matching.itm_accuracy(logits_sb2, labels_sb, weights_sb)}

    def _mlm(self, params, teacher, group, momentum, masked, states_md, schedule, key):
        momentum_md = self._apply(
            teacher, Albef.fuse_at, momentum["masked"], group["text_mask"], momentum["image"],
            masked["positions"], key=jax.random.fold_in(key, 1))

        def words(p, states):
            return self.model.apply({"params": p}, states, method=Albef.predict_words)

        logits_mv, labels_m = words(params, states_md), masked["labels"]
        losses_m = distillation.distilled_cross_entropy(
            logits_mv, labels_m, words(teacher, momentum_md), schedule["alpha_mlm"])
        # The maximum is at hand from the loss; an argmax would be one more pass over the words.
        labelled_m = jnp.take_along_axis(logits_mv, labels_m[:, None], axis=-1)[:, 0]
        correct_m = labelled_m >= jnp.max(logits_mv, axis=-1)
        return {"loss": masking.weighted_mean(losses_m, masked["weights"]),
                "accuracy": masking.weighted_mean(correct_m, masked["weights"])}

    def _enqueue(self, momentum, group):
        if not self._has_queue:
            return {}
        rows = {"image_queue": momentum["image_feat"], "text_queue": momentum["text_feat"]}
        if self.objective.positives == "image":
            rows["id_queue"] = group["image_id"]
        return rows


def check_objective(config):
    """Checks the `objective` block.

    Raises:
      UserError: a value outside its choices, or a queue that the batch does not divide.
    """
    o = config.objective
    for name, choices in (("negatives", ("hard", "random")), ("positives", ("pair", "image"))):
        if o[name] not in choices:
            raise UserError(f"objective.{name} is {o[name]!r}; choose one of {choices}.")
    if o.negatives == "hard" and not o.itc:
        raise UserError("objective.negatives is 'hard' but objective.itc is False: nothing would "
                        "train the similarities they are drawn by; set negatives='random'.")
    if o.itc and o.queue_size % config.batch_size:
        raise UserError(
            f"objective.queue_size {o.queue_size} is not a multiple of batch_size "
            f"{config.batch_size}; set queue_size to "
            f"{max(o.queue_size // config.batch_size, 1) * config.batch_size}.")
