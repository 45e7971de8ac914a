"""What pre-training and retrieval share: ITC, ITM and the momentum queues (ALBEF section 3.2)."""

import math

import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models import gradcam
from albef_jax.models.albef import Albef
from albef_jax.objectives import contrastive, distillation, matching, queue
from albef_jax.tasks.albef import AlbefTask
from albef_jax.tasks.base import Shown

TEACHER_PARTS = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
# Of one positive and two negatives, the matching loss of knowing nothing but this share.
ITM_BLIND = math.log(3) - 2 / 3 * math.log(2)
NO_IMAGE = -1  # in the queue of image ids
ALIGNED = dict(
    temperature=0.07, momentum=0.995,
    queue_size=65536,  # past features that ITC compares with; 0: the own group only
    negatives="hard",  # 'random'
    alpha_itc=0.4,
    alpha_ramp_steps=-1)  # -1: one epoch


class Aligned(AlbefTask):
    """An `Albef` model whose unimodal features are compared and whose fusion says match or not.

    Attributes:
      alphas: names of the teacher's weights in `config.objective`.
      positives: 'pair', or 'image' where texts of the same image are positives too.
      itc: whether features are compared.
    """

    alphas = ("alpha_itc",)

    def __init__(self, config, positives, words, itc=True):
        """`words`: with the MLM head."""
        super().__init__(config)
        self.positives, self.itc = positives, itc
        self.embed_dim = config.model.embed_dim
        self.model = Albef(config.model, words=words)
        self._has_queue = itc and config.objective.queue_size > 0

    @classmethod
    def check(cls, config):
        """See `Task.check`."""
        super().check(config)
        o = config.objective
        if o.negatives not in ("hard", "random"):
            raise UserError(f"objective.negatives is {o.negatives!r}; choose 'hard' or 'random'.")
        if o.get("itc", True) and o.queue_size % config.batch_size:
            raise UserError(
                f"objective.queue_size {o.queue_size} is not a multiple of batch_size "
                f"{config.batch_size}; set queue_size to "
                f"{max(o.queue_size // config.batch_size, 1) * config.batch_size}.")

    @classmethod
    def shown(cls, config):
        """See `Task.shown`."""
        candidates = config.group_size + config.objective.queue_size
        return [Shown("loss", "loss"),
                Shown("itc", "itc", "Contrastive loss (ITC)", blind=math.log(candidates),
                      note=f"dashed: all {candidates:,} candidates alike"),
                Shown("itm", "itm", "Matching loss (ITM)", blind=ITM_BLIND,
                      note="dashed: “no match” for every pair")]

    def init(self, rng):
        """See `Task.init`."""
        return {**super().init(rng), "temp": jnp.asarray(self.objective.temperature, jnp.float32)}

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
        if self.positives == "image":
            memory["id_queue"] = jnp.full((o.queue_size,), NO_IMAGE, jnp.int32)
        return memory

    def teacher_of(self, params):
        """Both encoders with their heads, and the projections."""
        return {name: params[name] for name in TEACHER_PARTS}

    def schedule(self, step):
        """The weights of the teacher's targets."""
        o = self.objective
        return {name: distillation.alpha_at(step, o[name], o.alpha_ramp_steps)
                for name in self.alphas}

    def update_memory(self, memory, enqueue):
        """Writes the momentum features over the oldest entries and moves the pointer."""
        if not memory:
            return memory
        pointer = memory["pointer"]
        rows = {name: queue.enqueue(memory[name], entries, pointer)
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
        def encode_image(params, image):
            return self._predict(Albef.encode_image, params, image)

        def encode_text(params, text_ids, text_mask):
            return self._predict(Albef.encode_text, params, text_ids, text_mask)

        def match(params, image_embeds, text_embeds, text_mask):
            return self._predict(Albef.match, params, image_embeds, text_embeds, text_mask)

        def itm_heat(params, image, text_ids, text_mask, layer=-1):
            return gradcam.itm_heat(self.model, params, image, text_ids, text_mask, layer)

        def itc_heat(params, image, text_ids, text_mask, block=-1):
            return gradcam.itc_heat(self.model, params, image, text_ids, text_mask, block)

        return dict(encode_image=encode_image, encode_text=encode_text, match=match,
                    itm_heat=itm_heat, itc_heat=itc_heat)

    def _predict(self, method, params, *arrays):
        return self.model.apply({"params": params}, *arrays, method=method)

    def _apply(self, params, method, *args, key, **options):
        return self.model.apply({"params": params}, *args, **options, deterministic=False,
                                method=method, rngs={"dropout": key})

    def _itc(self, temperature, online, momentum, memory, group, schedule):
        o, b = self.objective, online["image_feat"].shape[0]
        if not self.itc:
            zero = jnp.zeros(())
            return {"loss": zero, "mi_bound": zero, "positives_bb": jnp.eye(b, dtype=bool)}
        if self.positives == "image":
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
        logits = {side: itc[side][:, :b] if self.itc else jnp.zeros((b, b))
                  for side in ("t2i", "i2t")}
        return {
            "image": matching.sample_negatives(keys["image"], logits["t2i"], positives, kind),
            "text": matching.sample_negatives(keys["text"], logits["i2t"], positives, kind)}

    def _itm(self, params, states_sbd, itc, negatives):
        """Matching, other text, other image: fusion states at [CLS] `[3, b, d]`."""
        logits_sb2 = self.model.apply({"params": params}, states_sbd, method=Albef.itm_logits)
        valid_b = matching.has_negative(itc["positives_bb"])
        none_b = jnp.zeros_like(negatives["text"])
        labels_sb = jnp.stack([none_b + 1, none_b, none_b])
        weights_sb = jnp.stack([jnp.ones_like(valid_b), valid_b, valid_b])
        return {"logits": logits_sb2,
                "loss": matching.itm_loss(logits_sb2, labels_sb, weights_sb),
                "accuracy": matching.itm_accuracy(logits_sb2, labels_sb, weights_sb)}

    def _enqueue(self, momentum, group):
        if not self._has_queue:
            return {}
        rows = {"image_queue": momentum["image_feat"], "text_queue": momentum["text_feat"]}
        if self.positives == "image":
            rows["id_queue"] = group["image_id"]
        return rows
