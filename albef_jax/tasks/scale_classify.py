"""Classes of products: SCALE's trunk fine-tuned on its joint CLS tokens (M5Product)."""

import jax
import jax.numpy as jnp
import optax

from albef_jax.data.fields.label import LabelField
from albef_jax.models import flops
from albef_jax.models.scale import FEATURES, MODALITIES, ScaleClassifier
from albef_jax.tasks.base import Aux, Rule
from albef_jax.tasks.classification import shown_classes
from albef_jax.tasks.scale import MODEL, ScaleTask, sizes_of

HEADS = (*(f"projections_{name}" for name in MODALITIES.values()), "masked_heads_words",
         *(f"masked_heads_{MODALITIES[m]}" for m in FEATURES))


class ScaleClassify(ScaleTask):
    """Nothing is masked, and every parameter is trained; see `tasks.base.Task`."""

    def __init__(self, config):
        super().__init__(config)
        self.model = ScaleClassifier(config.model, sizes_of(config.data))

    @classmethod
    def defaults(cls):
        """See `Task.defaults`."""
        own = {name: value for name, value in MODEL.items() if name != "masked_head_input"}
        return super().defaults() | {"model": own | dict(classes=1805)}

    @classmethod
    def fields(cls, config):
        """See `Task.fields`."""
        return super().fields(config) | {"label": LabelField(config.model.classes)}

    @classmethod
    def shown(cls, config):
        """See `Task.shown`."""
        return shown_classes(config.model.classes)

    @classmethod
    def flops(cls, config):
        """See `models.flops.scale_trunk`."""
        trunk = flops.scale_trunk(config.model, sizes_of(config.data))
        return {name: flops.BACKWARD * value for name, value in trunk.items()}

    @classmethod
    def from_other(cls, name):
        """From pre-training: the trunk."""
        if name != "scale_pretrain":
            return None
        return Rule(from_pretraining, {(head,): "a head of pre-training" for head in HEADS})

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """Cross-entropy; see `Task.loss`. Nothing is drawn but dropout and what
        is withheld."""
        del teacher, memory, schedule, draws
        group = self.shown_part(jax.random.fold_in(key, 1), group)
        logits_bc, hidden_bp, cls = self.model.apply(
            {"params": params}, group, deterministic=False, rngs={"dropout": key})
        loss_b = optax.softmax_cross_entropy_with_integer_labels(logits_bc, group["label"])
        correct_b = jnp.argmax(logits_bc, axis=-1) == group["label"]
        total = jnp.mean(loss_b)
        return total, Aux({"loss": total, "accuracy": jnp.mean(correct_b)}, {},
                          {"logits": logits_bc, "hidden": hidden_bp, "cls": cls})

    def predict_fns(self):
        """Functions of the parameters and of a batch's arrays by name, without dropout.

        `classify`: logits `[b, classes]`. `encode`: the hidden layer as `hidden` `[b, p]`, the
        joint CLS tokens as `joint_LETTER` `[b, d]`, and their S'' as `scores` `[b, m, m]`. All
        float32.
        """
        def classify(params, **arrays):
            return self.model.apply({"params": params}, arrays)[0]

        def encode(params, **arrays):
            _, hidden_bp, cls = self.model.apply({"params": params}, arrays)
            return {"hidden": hidden_bp, **{f"joint_{m}": x for m, x in cls.items()},
                    "scores": self.scores(cls, arrays).normalised}

        return {"classify": classify, "encode": encode}


def from_pretraining(path):
    """An `Origin` in SCALE's pre-training."""
    part, name, *rest = path
    return (part, *rest) if name == "trunk" else "a new classifier"
