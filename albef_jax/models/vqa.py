"""Visual question answering by generation: an ALBEF encoder and a text decoder (section 5)."""

import flax.linen as nn
import jax.numpy as jnp

from albef_jax.models.albef import image_tower, normalise_image, text_tower
from albef_jax.models.bert import CACHE, BertEmbeddings, FusionLayer, MlmHead
from albef_jax.models.layers import padding_bias
from albef_jax.models.stack import stacking

HIDDEN = -1e9  # what cross-attention adds for words that are not there, as in the public code


class TextDecoder(nn.Module):
    """Causal BERT of `fusion_layers` layers, each of which reads the states of a question."""

    config: object  # the `model` block of a config

    def setup(self):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        self.embeddings = BertEmbeddings(c.vocab_size, c.max_positions, c.text_width, c.dropout,
                                         dtype, c.pad_id)
        self.layer = [FusionLayer(c.text_width, c.text_heads, c.text_mlp_width, c.dropout,
                                  c.attention_dropout, dtype) for _ in range(c.fusion_layers)]
        self.head = MlmHead(c.vocab_size, dtype)

    def __call__(self, ids_sbl, mask_sbl, question_bnd, question_mask_bn, deterministic=True):
        """Several sets of answers to the same questions, whose states are projected once.

        Args:
          ids_sbl, mask_sbl: s answers of each question, int32 `[s, b, l]`.
          question_bnd, question_mask_bn: states of the questions, and which of them are real.

        Returns:
          States `[s, b, l, d]`; what `predict_words` makes of position i predicts word i + 1.
        """
        s, b, l = ids_sbl.shape
        x = self.embeddings(ids_sbl.reshape(s * b, l), deterministic).reshape(s, b, l, -1)
        bias = causal_bias(mask_sbl.reshape(s * b, l))
        cross_bias = padding_bias(question_mask_bn, HIDDEN)
        return stacking(self.config).run(self.layer, x, lambda layer, x: layer(
            x, bias, layer.project_image(question_bnd), None, deterministic,
            cross_bias=cross_bias))

    def read_questions(self, question_bnd):
        """What each layer reads of the questions: a list of keys and values."""
        return [layer.project_image(question_bnd) for layer in self.layer]

    def next_words(self, ids_sb, position, question_kv, question_mask_bn):
        """One more word of s answers to each question; needs `CACHE`, see `Vqa.empty_cache`.

        Args:
          ids_sb: the words at `position`, int32 `[s, b]`; those before it are in the cache.
          question_kv: from `read_questions`. question_mask_bn: which states are real.

        Returns:
          Float32 logits `[s, b, v]` of the words after these.
        """
        s, b = ids_sb.shape
        length = self.get_variable(CACHE, "layer_0")["attention"]["key"].shape[1]
        x = self.embeddings(ids_sb.reshape(s * b, 1), True, position).reshape(s, b, 1, -1)
        empty_n = jnp.arange(length) < length - 1 - position
        bias = (empty_n * -10000.0)[None, None, None]
        cross_bias = padding_bias(question_mask_bn, HIDDEN)
        for layer, kv in zip(self.layer, question_kv):
            x = layer(x, bias, kv, None, True, cross_bias=cross_bias)
        return self.predict_words(x[:, :, 0])

    def predict_words(self, x):
        """States `[..., d]` -> float32 logits `[..., v]`."""
        return self.head(x, self.embeddings.word)


def causal_bias(mask_bl):
    """Additive self-attention mask `[b, 1, l, l]`: -10000 for padding and for what is to come."""
    causal_ll = jnp.tril(jnp.ones((mask_bl.shape[1],) * 2, jnp.float32))
    return (1.0 - causal_ll * mask_bl[:, None, None, :].astype(jnp.float32)) * -10000.0


class Vqa(nn.Module):
    """Question and image -> answer."""

    config: object  # the `model` block of a config

    def setup(self):
        self.visual_encoder = image_tower(self.config)
        self.text_encoder = text_tower(self.config)
        self.text_decoder = TextDecoder(self.config)

    def __call__(self, image_bhwc, ids_bl, mask_bl):
        """Touches every parameter once; used to initialise them."""
        states = self.encode(image_bhwc, ids_bl, mask_bl)
        decode = self.text_decoder
        return decode.predict_words(decode(ids_bl[None], mask_bl[None], states, mask_bl))

    def encode(self, image_bhwc, ids_bl, mask_bl, deterministic=True):
        """Images `[b, s, s, 3]` and questions `[b, l]` -> question states `[b, l, d]`."""
        image_bnd = self.visual_encoder(normalise_image(image_bhwc))
        text_bld = self.text_encoder.encode(ids_bl, mask_bl, deterministic)
        return self.text_encoder.fuse(text_bld[None], mask_bl[None], image_bnd,
                                      deterministic=deterministic)[0]

    def empty_cache(self, rows, length):
        """The collection `CACHE` for that many answers of at most `length` words."""
        c = self.config
        empty = jnp.zeros((rows, length, c.text_heads, c.text_width // c.text_heads), c.dtype)
        layers = {f"layer_{i}": {"attention": {"key": empty, "value": empty}}
                  for i in range(c.fusion_layers)}
        return {"text_decoder": layers}
