"""Fine-tuning ImageBERT for retrieval: every pair against negatives of its group (section 5)."""

import math

import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models import flops
from albef_jax.models.imagebert import ImageBert
from albef_jax.objectives import imagebert
from albef_jax.tasks.base import Aux, Rule, Shown, same
from albef_jax.tasks.imagebert import ImageBertTask, entropy, weighted_sum

TITLES = {"binary": "Binary loss", "multiclass": "Multi-class loss", "triplet": "Triplet loss"}
HEADS = {("bert", "head"): "the task predicts no words",
         ("moc_head",): "the task predicts no classes",
         ("mrfr_head",): "the task predicts no features"}


class ImageBertRetrieval(ImageBertTask):
    """See `tasks.base.Task`; the losses are on the match logit of every candidate."""

    OBJECTIVE = dict(
        binary=1.0, multiclass=0.0, triplet=0.0,  # weights of the losses; 0: without
        negatives_per_pair=1,
        margin=0.2)  # of the triplet loss
    pretraining = False

    @classmethod
    def defaults(cls):
        defaults = super().defaults()
        return defaults | {"optimizer": defaults["optimizer"] | dict(peak_lr=5e-5)}

    @classmethod
    def check(cls, config):
        super().check(config)
        o = config.objective
        if o.negatives_per_pair >= config.group_size:
            raise UserError(f"objective.negatives_per_pair is {o.negatives_per_pair}, but a group "
                            f"has {config.group_size} pairs; set it to less than group_size.")
        if not any(o[name] for name in TITLES):
            raise UserError("objective.binary, multiclass and triplet are all 0; give one of them "
                            "a weight.")

    @classmethod
    def shown(cls, config):
        p = config.objective.negatives_per_pair
        blind = {"binary": entropy(1 / (p + 1)), "multiclass": math.log(p + 1),
                 "triplet": config.objective.margin}
        return [Shown("loss", "loss"), *(
            Shown(name, name, title, blind=blind[name],
                  note="dashed: the same answer for every pair")
            for name, title in TITLES.items() if config.objective[name])]

    @classmethod
    def flops(cls, config):
        """See `models.flops.imagebert_retrieval_step`."""
        return flops.imagebert_retrieval_step(config.model, config.data,
                                              config.objective.negatives_per_pair)

    @classmethod
    def from_other(cls, name):
        """From a pre-training, whose heads for what is masked are left out."""
        return {"imagebert_pretrain": Rule(same, HEADS),
                "imagebert_retrieval": Rule(same, {})}.get(name)

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`; `draws`: `imagebert.CandidateDraws`."""
        del teacher, memory, schedule
        o, (draw_key, dropout_key) = self.objective, jax.random.split(key)
        if draws is None:
            draws = imagebert.draw_candidates(draw_key, group["image_id"],
                                              o.negatives_per_pair)
        pairs = self.paired(group, jnp.ravel(draws.text_bc), jnp.ravel(draws.image_bc))
        states = self._encode(params, pairs, dropout_key)
        scores_bc = self.model.apply({"params": params}, states, method=ImageBert.score_states
                                     ).reshape(draws.text_bc.shape)
        negative_bc = imagebert.is_negative(group["image_id"], draws)
        losses = {"binary": imagebert.binary_loss(scores_bc, negative_bc),
                  "multiclass": imagebert.multiclass_loss(scores_bc, negative_bc),
                  "triplet": imagebert.triplet_loss(scores_bc, negative_bc, o.margin)}
        total = weighted_sum(o, losses)
        ahead_b = jnp.all((scores_bc[:, :1] > scores_bc) | ~negative_bc, axis=1)
        metrics = {"loss": total, **losses, "accuracy": jnp.mean(ahead_b)}
        return total, Aux(metrics, {}, {"states": states, "scores": scores_bc})
