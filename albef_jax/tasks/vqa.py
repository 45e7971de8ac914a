"""Visual question answering: a decoder learns to write the answers (ALBEF section 5)."""

import functools

import jax
import jax.numpy as jnp
from optax.losses import softmax_cross_entropy_with_integer_labels as word_losses

from albef_jax.data.fields.answers import AnswersField
from albef_jax.models import flops
from albef_jax.models.bert import CACHE
from albef_jax.models.generation import beam_search
from albef_jax.models.vqa import TextDecoder, Vqa as VqaModel
from albef_jax.objectives import distillation
from albef_jax.tasks.albef import Distilled
from albef_jax.tasks.base import Aux, Rule, Shown, same

# What tasks that neither compare nor match leave out of a pre-training.
NO_MATCHING = {(head,): "the task compares and matches nothing"
               for head in ("vision_proj", "text_proj", "itm_head", "temp")}
RANKED_AT_ONCE = 8  # candidates of a question whose word logits exist at a time


def into_decoder(path):
    """An `Origin`: the decoder starts as the fusion layers, word embeddings and MLM head."""
    if path[1] != "text_decoder":
        return path
    module = path[2].replace("layer_", "fusion_")
    return (path[0], "text_encoder", module, *path[3:])


class Vqa(Distilled):
    """See `tasks.base.Task`; the loss of a question is the weighted sum over its answers."""

    # Questions are cut at 25 tokens in training only. Texts are padded to the longest question in
    # evaluation, so that 64 costs nothing.
    TEXTS = dict(text_length=25, eval_text_length=64, eval_max_words=50)
    module = VqaModel
    RULES = {"pretrain": Rule(into_decoder, NO_MATCHING), "vqa": Rule(same, {})}

    @classmethod
    def defaults(cls):
        shared = super().defaults()
        return shared | {"data": shared["data"] | AnswersField.defaults}

    @classmethod
    def fields(cls, config):
        return super().fields(config) | {"answers": AnswersField(config.data, config.model)}

    @classmethod
    def shown(cls, config):
        return [Shown("loss", "loss", "Loss"),
                Shown("answer_accuracy", "accuracy", "Accuracy in training, %", share=True),
                Shown("alpha", "alpha")]

    @classmethod
    def flops(cls, config):
        # A question has all slots for its answers, free ones too.
        m, data = config.model, config.data
        decoder = flops.decoder_flops(m, data.answer_length, data.text_length)
        forward = flops.classification_forward(m, data.text_length) | {
            "decoder": data.max_answers * decoder}
        return flops.distilled_step(forward, config.objective.alpha)

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """See `Task.loss`; without distillation (`objective.alpha` 0) the teacher is not asked."""
        online_key, teacher_key = jax.random.split(key)
        ids_abl, mask_abl = (jnp.moveaxis(group[name], 1, 0)
                             for name in ("answer_ids", "answer_mask"))
        read = functools.partial(self._read, group=group, ids_abl=ids_abl, mask_abl=mask_abl)
        online, momentum = read(params, online_key), None
        if self.objective.alpha:
            with jax.named_scope("teacher"):
                momentum = read(teacher, teacher_key)

        def of_one_answer(ids_bl, mask_bl, hidden_bld, hidden_m_bld):
            """Losses and hits `[b]` of one answer per question; the last state predicts nothing."""
            labels, counts = ids_bl[:, 1:], mask_bl[:, 1:]
            logits = self._words(params, hidden_bld[:, :-1])
            if hidden_m_bld is None:
                losses = word_losses(logits, labels)
            else:
                with jax.named_scope("teacher"):
                    logits_m = self._words(teacher, hidden_m_bld[:, :-1])
                losses = distillation.distilled_cross_entropy(logits, labels, logits_m,
                                                              schedule["alpha"])
            labelled = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            correct = (labelled >= jnp.max(logits, axis=-1)) | (counts == 0)
            return jnp.sum(losses * counts, axis=-1), jnp.all(correct, axis=-1)

        # Word logits are by far the largest arrays here: 30,522 numbers per word. So those of one
        # answer per question exist at a time, and the way back makes them again.
        losses_ab, correct_ab = jax.lax.map(
            lambda answer: jax.checkpoint(of_one_answer)(*answer),
            (ids_abl, mask_abl, online["hidden"], momentum and momentum["hidden"]))
        weight_ab = group["answer_weight"].T
        total = jnp.sum(weight_ab * losses_ab) / weight_ab.shape[1]
        accuracy = jnp.sum(weight_ab * correct_ab) / jnp.maximum(jnp.sum(weight_ab), 1e-6)
        metrics = {"loss": total, "vqa": total, "answer_accuracy": accuracy, **schedule}
        record = {"online": online, "momentum": momentum, "losses_ab": losses_ab}
        return total, Aux(metrics, {}, record)

    def predict_fns(self):
        """`encode` (see `models.vqa.Vqa.encode`), and the methods `rank` and `generate`."""
        return {"encode": lambda params, image, text_ids, text_mask: self.apply(
            params, VqaModel.encode, image, text_ids, text_mask),
            "rank": self.rank, "generate": self.generate}

    def rank(self, params, states_bnd, mask_bn, candidates, k, first_twice):
        """The k candidates with the likeliest first words, and how likely they are as a whole.

        Args:
          states_bnd, mask_bn: from `encode`, and the question's mask.
          candidates: ids and mask int32 `[c, l]` of the answers to choose from, c >= k.
          first_twice: add the log probability of the first word once more, as the public code
            does; published numbers depend on it.

        Returns:
          int32 `[b, k]` and float32 `[b, k]`: candidates and their scores, best first.
        """
        ids_cl, mask_cl = map(jnp.asarray, candidates)

        def of_one_question(states_nd, mask_n):
            question = states_nd[None], mask_n[None]

            def hidden_of(ids_kl, mask_kl):
                return self._decode(params, TextDecoder.__call__, ids_kl[:, None],
                                    mask_kl[:, None], *question)[:, 0]

            def log_likelihood(candidate):
                ids_l, mask_l, hidden_ld = candidate
                losses = word_losses(self._words(params, hidden_ld[:-1]), ids_l[1:])
                return -jnp.sum(losses * mask_l[1:])

            start_v = self._words(params, hidden_of(ids_cl[:1, :1], mask_cl[:1, :1])[0, 0])
            first_k, chosen_k = jax.lax.top_k(jax.nn.log_softmax(start_v)[ids_cl[:, 1]], k)
            best = ids_cl[chosen_k], mask_cl[chosen_k]
            scores_k = jax.lax.map(log_likelihood, (*best, hidden_of(*best)),
                                   batch_size=RANKED_AT_ONCE)
            scores_k = scores_k + first_k if first_twice else scores_k
            order = jnp.argsort(-scores_k)
            return chosen_k[order], scores_k[order]

        # By question: the batch axis stays outermost, where it is split over devices.
        return jax.vmap(of_one_question)(states_bnd, mask_bn)

    def generate(self, params, states_bnd, mask_bn, end_id, length, beams):
        """Writes answers: `beams` of each question, best first; see `beam_search`.

        Args:
          states_bnd, mask_bn: as of `rank`. length: of an answer, with [CLS] and [SEP], the end.

        Returns:
          int32 `[b, beams, length]` and float32 `[b, beams]`: answers and log probabilities.
        """
        m = self.model.config

        def of_one_question(states_nd, mask_n):
            question_kv = self._decode(params, TextDecoder.read_questions, states_nd[None])

            def step(cache, ids_k, position):
                logits, changed = self.model.apply(
                    {"params": params, CACHE: cache}, ids_k[:, None], position, question_kv,
                    mask_n[None], mutable=[CACHE],
                    method=lambda model, *args: model.text_decoder.next_words(*args))
                return changed[CACHE], jax.nn.log_softmax(logits[:, 0])

            return beam_search(step, self.model.empty_cache(beams, length), start_id=m.cls_id,
                               end_id=end_id, pad_id=m.pad_id, length=length, beams=beams)

        return jax.vmap(of_one_question)(states_bnd, mask_bn)

    def _read(self, params, key, group, ids_abl, mask_abl):
        """States of the questions `[b, n, d]` and of all words of their answers `[a, b, l, d]`."""
        encode_key, decode_key = jax.random.split(key)
        states = self.apply(params, VqaModel.encode, group["image"], group["text_ids"],
                            group["text_mask"], key=encode_key)
        hidden = self._decode(params, TextDecoder.__call__, ids_abl, mask_abl, states,
                              group["text_mask"], key=decode_key)
        return {"states": states, "hidden": hidden}

    def _words(self, params, hidden):
        return self._decode(params, TextDecoder.predict_words, hidden)

    def _decode(self, params, method, *args, **options):
        return self.apply(params, method, *args, part="text_decoder", **options)
