"""Classifying a text about images, with a momentum teacher: entailment and NLVR2 (section 5)."""

import math

import jax
import jax.numpy as jnp
import optax

from albef_jax.data.fields.label import LabelField
from albef_jax.models import flops
from albef_jax.objectives import distillation
from albef_jax.tasks.albef import Distilled
from albef_jax.tasks.base import Aux, Shown


class Classification(Distilled):
    """See `tasks.base.Task`; a subclass names the model and the classes."""

    @classmethod
    def fields(cls, config):
        return super().fields(config) | {"label": LabelField(len(cls.class_names))}

    @classmethod
    def shown(cls, config):
        return [*shown_classes(len(cls.class_names)), Shown("alpha", "alpha")]

    @classmethod
    def flops(cls, config):
        return flops.distilled_step(
            flops.classification_forward(config.model, config.data.text_length, cls.views),
            config.objective.alpha)

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """(1 - alpha) CE + alpha CE(teacher), see `Task.loss`; nothing is drawn but dropout."""
        online_key, teacher_key = jax.random.split(key)
        label_b = group["label"]
        logits_bc = self._logits(params, group, online_key)
        record = {"logits": logits_bc}
        if self.objective.alpha:
            with jax.named_scope("teacher"):
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
        return {"classify": lambda params, image, text_ids, text_mask: self.apply(
            params, None, *self.images(image), text_ids, text_mask)}

    def _logits(self, params, group, key):
        return self.apply(params, None, *self.images(group["image"]), group["text_ids"],
                          group["text_mask"], key=key)


def shown_classes(classes):
    """What a task of so many classes shows first."""
    return [Shown("loss", "loss", "Loss", blind=math.log(classes),
                  note=f"dashed: all {classes} classes alike"),
            Shown("accuracy", "accuracy", "Accuracy in training, %", share=True)]


def with_classifier(path):
    """An `Origin`: the towers keep their place; the classifier is new."""
    if path[1] != "cls_head":
        return path
    return "a new classifier" if path[0] == "params" else "starts as the online classifier"
