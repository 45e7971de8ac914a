"""ALBEF pre-training: ITC + ITM + MLM with a momentum teacher (ALBEF section 3.2, 3.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models import flops
from albef_jax.models.albef import Albef
from albef_jax.models.bert import Bert
from albef_jax.objectives import distillation, masking
from albef_jax.tasks.aligned import ALIGNED, Aligned
from albef_jax.tasks.base import Aux, Rule, Shown, check_mask_shares, same


class PretrainDraws(NamedTuple):
    """The random choices of one group, for replaying a recorded step."""

    masking: masking.MaskingDraws
    negative_image_b: jax.Array  # int32: for text b, the image that does not match
    negative_text_b: jax.Array  # int32: for image b, the text that does not match


class Pretrain(Aligned):
    """See `tasks.base.Task`; every switch of the paper's ablation is in `config.objective`."""

    OBJECTIVE = ALIGNED | dict(
        itc=True,
        positives="pair",  # 'image': captions of the same image are positives too
        alpha_mlm=0.4, mask_rate=0.15, mask_replace=(0.8, 0.1, 0.1),
        mlm_budget=0)  # predicted positions per group; 0: the mean plus six deviations
    RULES = {"pretrain": Rule(same, {})}
    step_flops = staticmethod(flops.pretrain_step)
    alphas = ("alpha_itc", "alpha_mlm")

    @classmethod
    def check(cls, config):
        super().check(config)
        o = config.objective
        if o.negatives == "hard" and not o.itc:
            raise UserError("objective.negatives is 'hard' but objective.itc is False: nothing "
                            "would train the similarities they are drawn by; set "
                            "negatives='random'.")
        check_mask_shares(config)

    @classmethod
    def shown(cls, config):
        return [*super().shown(config), Shown("mlm", "mlm", "Masked-word loss (MLM)")]

    def prepare(self, params):
        """Clamps the temperature to [0.001, 0.5]."""
        return {**params, "temp": jnp.clip(params["temp"], 0.001, 0.5)}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`; the order of events is that of the public code."""
        keys = dict(zip(("masking", "image", "text", "encode", "fuse", "teacher"),
                        jax.random.split(key, 6)))
        masked = self._mask(group, keys["masking"], draws)
        online = self._encode(params, group, masked["ids"], keys["encode"])
        with jax.named_scope("teacher"):
            momentum = self._encode(teacher, group, masked["ids"], keys["teacher"])
        itc = self._itc(params["temp"], online, momentum, memory, group, schedule)
        negatives = self._negatives(itc, keys, draws, schedule)
        fused = self._fuse(params, group, online, masked, negatives, keys["fuse"])
        itm = self._itm(params, fused["itm_sbd"], itc, negatives)
        mlm = self._mlm(params, teacher, group, momentum, masked, fused["mlm_md"], schedule,
                        keys["teacher"])
        total = mlm["loss"] + itm["loss"] + itc["loss"]
        metrics = {"loss": total, "itc": itc["loss"], "itm": itm["loss"], "mlm": mlm["loss"],
                   "mi_bound": itc["mi_bound"], "itm_accuracy": itm["accuracy"],
                   "mlm_accuracy": mlm["accuracy"], "mlm_overflow_per_group": masked["overflow"],
                   "temperature": params["temp"], **schedule,
                   **self._overflow(group["text_mask"], fused["mask_sbl"])}
        record = {"online": online, "momentum": momentum, "masked": masked, "itc": itc,
                  "negatives": negatives, "itm": itm, "fused": fused}
        return total, Aux(metrics, self._enqueue(momentum, group), record)

    def predict_fns(self):
        return super().predict_fns() | {
            "mlm_logits": lambda params, image_embeds, masked_ids, text_mask: self.apply(
                params, Albef.mlm_logits, image_embeds, masked_ids, text_mask)}

    def _mask(self, group, key, draws):
        o, m, ids_bl = self.objective, self.model.config, group["text_ids"]
        drawn = draws.masking if draws is not None else masking.draw_masking(
            key, ids_bl.shape, m.vocab_size, o.mask_rate, tuple(o.mask_replace))
        ids, predicted_bl = masking.mask_tokens(
            ids_bl, drawn, pad_id=m.pad_id, cls_id=m.cls_id, mask_id=m.mask_id)
        budget = o.mlm_budget or masking.default_budget(*ids_bl.shape, o.mask_rate)
        positions_m, weights_m, overflow = masking.masked_positions(predicted_bl, budget)
        return {"ids": ids, "predicted": predicted_bl, "positions": positions_m,
                "weights": weights_m, "overflow": overflow,
                "labels": ids_bl.reshape(-1)[positions_m]}

    def _encode(self, params, group, masked_ids_bl, key):
        """Both encoders on one group; the same for the online model and its teacher."""
        image_bnd, image_feat_be = self.apply(params, Albef.encode_image, group["image"])
        text_bld, masked_bld = self.apply(
            params, Albef.encode_masked, group["text_ids"], masked_ids_bl, group["text_mask"],
            key=jax.random.fold_in(key, 0))
        text_feat_be = self.apply(params, Albef.text_feature, text_bld)
        return {"image": image_bnd, "image_feat": image_feat_be, "text": text_bld,
                "masked": masked_bld, "text_feat": text_feat_be}

    def _fuse(self, params, group, online, masked, negatives, key):
        """One fusion pass over four text sets: masked, matching, other text, other image."""
        text, mask, other = online["text"], group["text_mask"], negatives["text"]
        mask_sbl = jnp.stack([mask, mask, mask[other], mask])
        mlm_md, itm_sbd = self.apply(
            params, Bert.fuse_for_losses,
            jnp.stack([online["masked"], text, text[other], text]), mask_sbl, online["image"],
            negatives["image"], masked["positions"], part="text_encoder", key=key)
        return {"mlm_md": mlm_md, "itm_sbd": itm_sbd, "mask_sbl": mask_sbl}

    def _mlm(self, params, teacher, group, momentum, masked, states_md, schedule, key):
        logits_mv = self.apply(params, Bert.predict_words, states_md, part="text_encoder")
        with jax.named_scope("teacher"):
            momentum_md = self.apply(
                teacher, Bert.fuse, momentum["masked"][None], group["text_mask"][None],
                momentum["image"], select_m=masked["positions"], part="text_encoder",
                key=jax.random.fold_in(key, 1))
            logits_m_mv = self.apply(teacher, Bert.predict_words, momentum_md,
                                     part="text_encoder")
        labels_m = masked["labels"]
        losses_m = distillation.distilled_cross_entropy(
            logits_mv, labels_m, logits_m_mv, schedule["alpha_mlm"])
        # The maximum is at hand from the loss; an argmax would be one more pass over the words.
        labelled_m = jnp.take_along_axis(logits_mv, labels_m[:, None], axis=-1)[:, 0]
        correct_m = labelled_m >= jnp.max(logits_mv, axis=-1)
        return {"loss": masking.weighted_mean(losses_m, masked["weights"]),
                "accuracy": masking.weighted_mean(correct_m, masked["weights"])}
