"""Classifying a text about images, with a momentum teacher: entailment and NLVR2 (section 5)."""

import jax
import jax.numpy as jnp
import optax

from albef_jax.objectives import distillation
from albef_jax.tasks.base import Aux, Task

TEACHER_PARTS = ("visual_encoder", "text_encoder", "cls_head")


class Classification(Task):
    """See `tasks.base.Task`; a subclass names the model.

    Attributes:
      module: linen class of a `model` block, called with images, text ids and mask.
      classes: how many there are.
    """

    needs = ("label",)
    module = None
    classes: int

    def __init__(self, config):
        self.objective = config.objective
        self.model = self.module(config.model, self.classes)

    def teacher_of(self, params):
        """Everything."""
        return {name: params[name] for name in TEACHER_PARTS}

    def schedule(self, step):
        """`alpha`, the weight of the teacher's prediction."""
        o = self.objective
        return {"alpha": distillation.alpha_at(step, o.alpha, o.alpha_ramp_steps)}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """(1 - alpha) CE + alpha CE(teacher), see `Task.loss`; nothing is drawn but dropout."""
        del memory, draws
        online_key, teacher_key = jax.random.split(key)
        label_b = group["label"]
        logits_bc = self._logits(params, group, online_key)
        record = {"logits": logits_bc}
        if self.objective.alpha:
            record["teacher_logits"] = self._logits(teacher, group, teacher_key)
            loss_b = distillation.distilled_cross_entropy(
                logits_bc, label_b, record["teacher_logits"], schedule["alpha"])
        else:
            loss_b = optax.softmax_cross_entropy_with_integer_labels(logits_bc, label_b)
        correct_b = jnp.argmax(logits_bc, axis=-1) == label_b
        total = jnp.mean(loss_b)
        return total, Aux({"loss": total, "accuracy": jnp.mean(correct_b), **schedule}, {}, record)

    def predict_fns(self):
        """`classify(params, image, text_ids, text_mask)` -> float32 logits `[b, classes]`."""
        def classify(params, image, ids_bl, mask_bl):
            return self.model.apply({"params": params}, *self.images(image), ids_bl, mask_bl)

        return {"classify": classify}

    def _logits(self, params, group, key):
        return self.model.apply(
            {"params": params}, *self.images(group["image"]), group["text_ids"],
            group["text_mask"], deterministic=False, rngs={"dropout": key})
