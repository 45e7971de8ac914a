"""Fine-tuning for retrieval and for grounding: ITC + ITM with several texts per image.

ALBEF section 5 ("Image-Text Retrieval", "Visual Grounding"). Unlike in pre-training every text of
the same image is a positive, also those in the queue, no word is masked, and the temperature is
not clamped.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from albef_jax.models.albef import Albef
from albef_jax.models.bert import Bert
from albef_jax.tasks.aligned import ALIGNED, Aligned
from albef_jax.tasks.base import Aux, Rule, same

NO_WORDS = {("text_encoder", "head"): "the task predicts no words"}


class RetrievalDraws(NamedTuple):
    """The random choices of one group, for replaying a recorded step."""

    negative_image_b: jax.Array  # int32: for text b, the image that does not match
    negative_text_b: jax.Array  # int32: for image b, the text that does not match


class Retrieval(Aligned):
    """See `tasks.base.Task`."""

    # Padded to the longest caption of a batch in training, which 30 words hardly ever push past 36
    # tokens, and cut at 30 in evaluation.
    TEXTS = dict(text_length=40, eval_text_length=30)
    module = staticmethod(functools.partial(Albef, words=False))
    OBJECTIVE = ALIGNED
    RULES = {"pretrain": Rule(same, NO_WORDS), "retrieval": Rule(same, {})}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        keys = dict(zip(("image", "text", "encode", "fuse", "teacher"), jax.random.split(key, 5)))
        online = self._encode(params, group, keys["encode"])
        with jax.named_scope("teacher"):
            momentum = self._encode(teacher, group, keys["teacher"])
        itc = self._itc(params["temp"], online, momentum, memory, group, schedule)
        negatives = self._negatives(itc, keys, draws, schedule)
        fused = self._fuse(params, group, online, negatives, keys["fuse"])
        itm = self._itm(params, fused["itm_sbd"], itc, negatives)
        total = itm["loss"] + itc["loss"]
        metrics = {"loss": total, "itc": itc["loss"], "itm": itm["loss"],
                   "mi_bound": itc["mi_bound"], "itm_accuracy": itm["accuracy"],
                   "temperature": params["temp"], **schedule,
                   **self._overflow(group["text_mask"], fused["mask_sbl"])}
        record = {"online": online, "momentum": momentum, "itc": itc, "negatives": negatives,
                  "itm": itm, "fused": fused}
        return total, Aux(metrics, self._enqueue(momentum, group), record)

    def _encode(self, params, group, key):
        """Both encoders on one group; the same for the online model and its teacher."""
        image_bnd, image_feat_be = self.apply(params, Albef.encode_image, group["image"])
        text_bld, text_feat_be = self.apply(
            params, Albef.encode_text, group["text_ids"], group["text_mask"], key=key)
        return {"image": image_bnd, "image_feat": image_feat_be,
                "text": text_bld, "text_feat": text_feat_be}

    def _fuse(self, params, group, online, negatives, key):
        """One fusion pass over three text sets: matching, other text, other image."""
        text, mask, other = online["text"], group["text_mask"], negatives["text"]
        mask_sbl = jnp.stack([mask, mask[other], mask])
        states_sb1d = self.apply(
            params, Bert.fuse, jnp.stack([text, text[other], text]), mask_sbl, online["image"],
            negatives["image"], query_len=1, part="text_encoder", key=key)
        return {"itm_sbd": states_sb1d[:, :, 0], "mask_sbl": mask_sbl}
