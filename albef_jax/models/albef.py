"""ALBEF: image encoder, text encoder, fusion encoder, projections and the ITM head."""

import flax.linen as nn
import jax.numpy as jnp

from albef_jax.models.bert import Bert
from albef_jax.models.layers import Dense
from albef_jax.models.stack import stacking
from albef_jax.models.vit import VisionTransformer

# Channel statistics of the public code, for pixels scaled to [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise_image(image_bhwc):
    """uint8 pixels -> float32 with the public code's mean and std; floats pass unchanged."""
    if not jnp.issubdtype(image_bhwc.dtype, jnp.integer):
        return image_bhwc
    pixels = image_bhwc.astype(jnp.float32) / 255.0
    return (pixels - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


def l2_normalise(x):
    """Unit vectors along the last axis, in float32."""
    x = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The floor is inside the root: a root of zero would have an infinite gradient.
    return x / jnp.sqrt(jnp.maximum(squared, 1e-24))


UNIFORM_FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LinearUniform(nn.Module):
    """Float32 layer with weight and bias drawn from U(+-1/sqrt(fan_in)), torch's default."""

    features: int

    @nn.compact
    def __call__(self, x):
        def bias_init(key, shape):
            return UNIFORM_FAN_IN(key, (x.shape[-1], *shape))[0]

        return Dense(self.features, jnp.float32, UNIFORM_FAN_IN, bias_init, name="dense")(x)


def image_tower(config):
    """The image encoder of a config's `model` block."""
    c = config
    return VisionTransformer(
        image_size=c.image_size, patch_size=c.patch_size, width=c.vit_width, depth=c.vit_depth,
        heads=c.vit_heads, mlp_ratio=c.vit_mlp_ratio, dtype=jnp.dtype(c.dtype),
        stacking=stacking(c), attention=c.get("attention", "plain"))


def text_tower(config, pairs=False, text_budget=0.0):
    """The text and fusion encoder of a config's `model` block; `pairs`: two fusion layers each.

    `text_budget`: see `Bert`.
    """
    c = config
    return Bert(
        vocab_size=c.vocab_size, max_positions=c.max_positions, width=c.text_width,
        text_layers=c.text_layers, fusion_layers=c.fusion_layers * (2 if pairs else 1),
        heads=c.text_heads, mlp_width=c.text_mlp_width, dropout=c.dropout,
        attention_dropout=c.attention_dropout, dtype=jnp.dtype(c.dtype), stacking=stacking(c),
        pad_id=c.pad_id, cross_attention=c.get("attention", "plain"),
        text_budget=text_budget)


class Albef(nn.Module):
    """The towers and heads of pre-training and retrieval.

    The momentum teacher is this module applied to the EMA parameters.
    """

    config: object  # the `model` block of a config (a frozen mapping: sizes, dropout, dtype)
    words: bool = True  # with the MLM head, which retrieval does not have
    text_budget: float = 0.0  # see `Bert`

    def setup(self):
        c = self.config
        self.visual_encoder = image_tower(c)
        self.text_encoder = text_tower(c, text_budget=self.text_budget)
        self.vision_proj = LinearUniform(c.embed_dim)
        self.text_proj = LinearUniform(c.embed_dim)
        self.itm_head = LinearUniform(2)

    def __call__(self, image_bhwc, ids_bl, mask_bl):
        """Touches every parameter once; used to initialise them."""
        image_bnd, _ = self.encode_image(image_bhwc)
        text_bld, _ = self.encode_text(ids_bl, mask_bl)
        fused = self.text_encoder.fuse(text_bld[None], mask_bl[None], image_bnd)[0]
        words = self.text_encoder.predict_words(fused) if self.words else None
        return self.itm_logits(fused[:, 0]), words

    def encode_image(self, image):
        """Images (uint8, or normalised floats) `[b, s, s, 3]` -> tokens `[b, n, d]`, unit
        float32 features `[b, e]`."""
        image_bnd = self.visual_encoder(normalise_image(image))
        return image_bnd, l2_normalise(self.vision_proj(image_bnd[:, 0]))

    def encode_text(self, text_ids, text_mask, deterministic=True):
        """Text ids and mask `[b, l]` -> states `[b, l, d]`, unit float32 features `[b, e]`."""
        text_bld = self.text_encoder.encode(text_ids, text_mask, deterministic)
        return text_bld, self.text_feature(text_bld)

    def text_feature(self, text_bld):
        """Unit float32 features `[b, e]` of text states `[b, l, d]`."""
        return l2_normalise(self.text_proj(text_bld[:, 0]))

    def encode_masked(self, ids_bl, masked_ids_bl, mask_bl, deterministic=True):
        """Clean and masked texts in one pass: two `[b, l, d]`."""
        states = self.text_encoder.encode(
            jnp.concatenate([ids_bl, masked_ids_bl]), jnp.concatenate([mask_bl, mask_bl]),
            deterministic)
        return states[: len(ids_bl)], states[len(ids_bl):]

    def itm_logits(self, cls):
        """Fusion states at [CLS] `[..., d]` -> float32 logits `[..., 2]`; class 1 = match."""
        return self.itm_head(cls.astype(jnp.float32))

    def match(self, image_embeds, text_embeds, text_mask):
        """ITM logits `[b, 2]` of aligned images `[b, n, d]` and texts `[b, l, d]`."""
        fused = self.text_encoder.fuse(text_embeds[None], text_mask[None], image_embeds,
                                       query_len=1)[0]
        return self.itm_logits(fused[:, 0])

    def mlm_logits(self, image_embeds, masked_ids, text_mask):
        """Word logits `[b, l, v]` at every position of masked texts `[b, l]`."""
        text_bld = self.text_encoder.encode(masked_ids, text_mask)
        fused = self.text_encoder.fuse(text_bld[None], text_mask[None], image_embeds)[0]
        return self.text_encoder.predict_words(fused)
