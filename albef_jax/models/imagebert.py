"""ImageBERT: words and regions of an image in one BERT (Qi et al. 2020, arXiv:2001.07966).

A pair is the sequence `[CLS] words [SEP]`, padded to t columns; a feature of the whole image, where
there is one; its regions, padded to n columns; and a final `[SEP]` in the last column.
"""

import flax.linen as nn
import jax.numpy as jnp

from albef_jax.models.bert import LAYER_NORM_EPS, Bert
from albef_jax.models.layers import NORMAL, Dense, Dropout, Dtype, LayerNorm
from albef_jax.models.stack import stacking

TEXT, IMAGE = 0, 1  # segments
WHOLE = (0.0, 0.0, 1.0, 1.0, 1.0)  # the box of a whole image


class RegionEmbeddings(nn.Module):
    """Feature + location + segment + position, LayerNorm, dropout: `[b, n, f] -> [b, n, d]`.

    Regions have no order: their position is one learned vector, the same for all.
    """

    width: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, features_bnf, box_bn5, segment_d, deterministic):
        position = self.param("position", NORMAL, (1, self.width))
        x = Dense(self.width, self.dtype, name="feature")(features_bnf)
        # Five numbers cost nothing in float32, and are places.
        x = x + Dense(self.width, jnp.float32, name="location")(box_bn5)
        x = LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(x + segment_d + position)
        return Dropout(self.dropout)(x, deterministic)


class ImageBert(nn.Module):
    """The stream with its heads.

    The functions that evaluators call by name (`Task.predict_fns`) have arguments with the names of
    a batch's arrays.

    Attributes:
      config: the `model` block of a config.
      feature_width: f, channels of a region's feature.
      global_width: of a feature of the whole image, 0: there is none.
      pretraining: with heads for words, classes and features, which retrieval does not have.
    """

    config: object
    feature_width: int
    global_width: int = 0
    pretraining: bool = True

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.bert = Bert(
            vocab_size=c.vocab_size, max_positions=c.max_positions, width=c.text_width,
            text_layers=c.text_layers, fusion_layers=0, heads=c.text_heads,
            mlp_width=c.text_mlp_width, dropout=c.dropout, attention_dropout=c.attention_dropout,
            dtype=dtype, stacking=stacking(c), pad_id=c.pad_id)
        self.region_embeddings = RegionEmbeddings(c.text_width, c.dropout, dtype)
        if self.global_width:
            self.global_embeddings = RegionEmbeddings(c.text_width, c.dropout, dtype)
        self.moc_head = Dense(c.classes, dtype)
        self.mrfr_head = Dense(self.feature_width, dtype)
        self.itm_head = Dense(1, jnp.float32)

    def __call__(self, arrays):
        """Touches every parameter once; used to initialise them."""
        states = self.encode(arrays)
        outputs = [self.score_states(states)]
        if self.pretraining:
            outputs += [head(states) for head in (self.words, self.classes, self.features)]
        return outputs

    # ---- from a pair to states -------------------------------------------------------------

    def embed_text(self, text_ids, deterministic=True):
        """Text ids `[b, t]` -> embeddings `[b, t, d]`."""
        return self.bert.embeddings(text_ids, deterministic, token_types=TEXT)

    def embed_image(self, regions, regions_box, regions_mask, global_feature=None,
                    deterministic=True):
        """The visual tokens of images, zeros where they are padding.

        Args:
          regions: features `[b, n, f]`. regions_box: float32 `[b, n, 5]`. regions_mask: `[b, n]`.
          global_feature: `[b, 1, global_width]`, if the model has one.

        Returns:
          `[b, n, d]`, or `[b, 1 + n, d]` with a feature of the whole image.
        """
        segment_d = self.bert.embeddings.token_type[IMAGE]
        embeds = self.region_embeddings(regions, regions_box, segment_d, deterministic)
        embeds = jnp.where(regions_mask[..., None] > 0, embeds, 0)
        if not self.global_width:
            return embeds
        whole = self.global_embeddings(global_feature, jnp.array(WHOLE), segment_d, deterministic)
        return jnp.concatenate([whole, embeds], axis=1)

    def join(self, image_embeds, image_mask, text_embeds, text_mask, deterministic=True):
        """Embedded images `[b, i, d]` and texts `[b, t, d]` -> states `[b, t + i (+ 1), d]`."""
        parts, masks = [text_embeds, image_embeds], [text_mask, image_mask]
        if self.config.final_sep:
            lengths_b1 = jnp.sum(text_mask > 0, axis=1, keepdims=True)
            sep_b1 = jnp.full_like(lengths_b1, self.config.sep_id)
            parts.append(self.bert.embeddings(sep_b1, deterministic, token_types=IMAGE,
                                              positions_bl=lengths_b1))
            masks.append(jnp.ones_like(sep_b1))
        return self.bert.encode_embedded(
            jnp.concatenate(parts, axis=1),
            jnp.concatenate([mask > 0 for mask in masks], axis=1), deterministic)

    def encode(self, arrays, deterministic=True):
        """Texts and images of a batch's arrays by name -> states `[b, t + i (+ 1), d]`."""
        images = {name: arrays[name] for name in ("regions", "regions_box", "regions_mask")}
        mask = arrays["regions_mask"]
        if self.global_width:
            images["global_feature"] = arrays["global_feature"]
            mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
        return self.join(self.embed_image(**images, deterministic=deterministic), mask,
                         self.embed_text(arrays["text_ids"], deterministic), arrays["text_mask"],
                         deterministic)

    # ---- heads -----------------------------------------------------------------------------

    def words(self, states):
        """Float32 logits `[..., v]` of words (MLM)."""
        return self.bert.predict_words(states)

    def classes(self, states):
        """Float32 logits `[..., k]` of object classes (MOC)."""
        return self.moc_head(states).astype(jnp.float32)

    def features(self, states):
        """Float32 features of regions `[..., f]` (MRFR)."""
        return self.mrfr_head(states).astype(jnp.float32)

    def score_states(self, states_bld):
        """Float32 logits `[b]` of a match, from the state at [CLS] (ITM)."""
        return self.itm_head(states_bld[:, 0].astype(jnp.float32))[..., 0]

    def score(self, image_embeds, text_embeds, text_mask):
        """Match logits `[b]` of what `embed_image` and `embed_text` gave."""
        # What is embedded went through a LayerNorm: only padding is all zeros.
        image_mask = jnp.any(image_embeds != 0, axis=-1)
        return self.score_states(self.join(image_embeds, image_mask, text_embeds, text_mask))


def text_part(states_bld, text_length):
    """The states of a text's columns, `[b, t, d]`."""
    return states_bld[:, :text_length]


def region_part(states_bld, regions, final_sep):
    """The states of the n columns of regions, `[b, n, d]`."""
    end = states_bld.shape[1] - final_sep
    return states_bld[:, end - regions:end]
