"""Text assignment (TA): which of two images does a text belong to, or to neither?

The pre-training of NLVR's pairs of fusion layers on image-text pairs (ALBEF section 5, NLVR2).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from albef_jax.errors import UserError
from albef_jax.models import flops
from albef_jax.models.classification import TextAssignment as Model
from albef_jax.objectives import matching
from albef_jax.objectives.masking import weighted_mean
from albef_jax.tasks.albef import AlbefTask
from albef_jax.tasks.base import Aux, Rule, same
from albef_jax.tasks.classification import shown_classes
from albef_jax.tasks.retrieval import NO_WORDS

# Of the similarities that negatives are drawn by: fixed, whatever temperature the weights bring.
TEMPERATURE = 0.07
FIRST, SECOND, NEITHER = range(3)  # labels: the text's own image is the ...


class AssignmentDraws(NamedTuple):
    """The random choices of one group, each int32 `[b]`."""

    first_b: jax.Array  # row of the first image that text b is shown with
    second_b: jax.Array  # row of the second
    label_b: jax.Array  # which of them is its own


def into_pairs(path):
    """An `Origin`: both layers of a pair start as the same fusion layer."""
    if path[1] == "ta_head":
        return "a new head"
    if path[1] == "text_encoder" and path[2].startswith("fusion_"):
        number = int(path[2].removeprefix("fusion_"))
        return (*path[:2], f"fusion_{number // 2}", *path[3:])
    return path


class TextAssignment(AlbefTask):
    """See `tasks.base.Task`. There is no teacher, as in the public code.

    Negatives are drawn by softmax(image similarity / 0.07) over the group.
    Images with the same `image_id` are never negatives of each other; the public code does not
    check that, and calls a text foreign to a second copy of its own image.
    """

    module = Model
    OBJECTIVE = dict(temperature=0.07)  # the first value of a parameter that nothing reads
    RULES = {"nlvr_pretrain": Rule(same, {}), "pretrain": Rule(into_pairs, NO_WORDS | {
        ("itm_head",): "the task matches nothing", ("teacher",): "the task has no teacher"})}

    @classmethod
    def check(cls, config):
        super().check(config)
        if config.group_size < 3:
            raise UserError(f"group_size is {config.group_size}; text assignment shows a text "
                            "two other images of its group and needs a group_size of at least 3.")

    @classmethod
    def shown(cls, config):
        return shown_classes(3)

    @classmethod
    def flops(cls, config):
        # The second image of a text is that of another text, so each is encoded once.
        m, length = config.model, config.data.text_length
        forward = flops.classification_forward(m, length, images=2)
        return flops.distilled_step(forward | {"vit": flops.vit_flops(m)}, alpha=0)

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """Cross-entropy of the three labels, see `Task.loss`."""
        text_key, pair_key, draw_key = jax.random.split(key, 3)
        image_bnd, feat_be = self.apply(params, Model.encode_image, group["image"])
        text_bld = self.apply(params, Model.encode_text, group["text_ids"], group["text_mask"],
                              key=text_key)
        similarity_bb = jax.lax.stop_gradient(feat_be @ feat_be.T / TEMPERATURE)
        same_bb = group["image_id"][:, None] == group["image_id"][None, :]
        weights_bb = matching.negative_probabilities(similarity_bb, same_bb)
        if draws is None:
            draws = draw_pairs(draw_key, weights_bb)
        logits_b3 = self.apply(
            params, Model.assign, image_bnd[draws.first_b], image_bnd[draws.second_b], text_bld,
            group["text_mask"], key=pair_key)
        weight_b = matching.has_negative(same_bb)
        loss_b = optax.softmax_cross_entropy_with_integer_labels(logits_b3, draws.label_b)
        correct_b = jnp.argmax(logits_b3, axis=-1) == draws.label_b
        total = weighted_mean(loss_b, weight_b)
        metrics = {"loss": total, "accuracy": weighted_mean(correct_b, weight_b)}
        record = {"image": image_bnd, "text": text_bld, "image_feat": feat_be,
                  "similarity": similarity_bb, "weights": weights_bb, "logits": logits_b3}
        return total, Aux(metrics, {}, record)


def draw_pairs(key, weights_bb):
    """Draws the two images of every text, and their order.

    With probability 2/3 one is the text's own and the other a negative, drawn by `weights_bb`, in
    either order; else both are negatives and different. A text with a single possible negative
    never gets NEITHER, and one without any gets an arbitrary one, which the loss leaves out.
    """
    label_key, image_key = jax.random.split(key)
    # The largest two of log weights + Gumbel noise: two draws without replacement.
    noisy_bb = jnp.log(weights_bb) + jax.random.gumbel(image_key, weights_bb.shape)
    negative_b, other_negative_b = jax.lax.top_k(noisy_bb, 2)[1].T
    labels_b = jnp.where(jnp.sum(weights_bb > 0, axis=-1) < 2, NEITHER, NEITHER + 1)
    label_b = jax.random.randint(label_key, (len(weights_bb),), FIRST, labels_b)
    own_b = jnp.arange(len(weights_bb))
    first_b = jnp.where(label_b == FIRST, own_b, negative_b)
    second_b = jnp.where(label_b == FIRST, negative_b,
                         jnp.where(label_b == SECOND, own_b, other_negative_b))
    return AssignmentDraws(first_b, second_b, label_b)
