"""Models that classify a text about images: entailment, NLVR2, text assignment."""

import flax.linen as nn
import jax.numpy as jnp

from albef_jax.models.albef import (
    LinearUniform, image_tower, l2_normalise, normalise_image, text_tower,
)


class Classifier(nn.Module):
    """Linear, ReLU, linear in float32: `[..., d] -> [..., classes]`."""

    classes: int

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        h = nn.relu(LinearUniform(x.shape[-1], name="fc1")(x))
        return LinearUniform(self.classes, name="fc2")(h)


class Entailment(nn.Module):
    """Does an image entail a text? (SNLI-VE, ALBEF section 5.)"""

    config: object  # the `model` block of a config
    classes: int = 3  # contradiction, neutral, entailment

    def setup(self):
        self.visual_encoder = image_tower(self.config)
        self.text_encoder = text_tower(self.config)
        self.cls_head = Classifier(self.classes)

    def __call__(self, image_bhwc, ids_bl, mask_bl, deterministic=True):
        """Images `[b, s, s, 3]` and texts `[b, l]` -> float32 logits `[b, classes]`."""
        image_bnd = self.visual_encoder(normalise_image(image_bhwc))
        text_bld = self.text_encoder.encode(ids_bl, mask_bl, deterministic)
        fused = self.text_encoder.fuse(text_bld[None], mask_bl[None], image_bnd,
                                       deterministic=deterministic, query_len=1)
        return self.cls_head(fused[0, :, 0])


class Nlvr(nn.Module):
    """Is a text true of two images? (NLVR2, ALBEF section 5.)"""

    config: object  # the `model` block of a config; every fusion layer becomes a pair of layers
    classes: int = 2  # false, true

    def setup(self):
        self.visual_encoder = image_tower(self.config)
        self.text_encoder = text_tower(self.config, pairs=True)
        self.cls_head = Classifier(self.classes)

    def __call__(self, first_bhwc, second_bhwc, ids_bl, mask_bl, deterministic=True):
        """Two images `[b, s, s, 3]` and a text `[b, l]` each -> float32 logits `[b, classes]`."""
        images = normalise_image(jnp.concatenate([first_bhwc, second_bhwc]))
        first_bnd, second_bnd = jnp.split(self.visual_encoder(images), 2)
        text_bld = self.text_encoder.encode(ids_bl, mask_bl, deterministic)
        fused = self.text_encoder.fuse_pairs(text_bld, mask_bl, first_bnd, second_bnd,
                                             deterministic, query_len=1)
        return self.cls_head(fused[:, 0])


class TextAssignment(nn.Module):
    """Which of two images does a text belong to? Pre-training of NLVR's pairs of layers."""

    config: object  # as of `Nlvr`

    def setup(self):
        self.visual_encoder = image_tower(self.config)
        self.text_encoder = text_tower(self.config, pairs=True)
        self.vision_proj = LinearUniform(self.config.embed_dim)
        # Part of the published checkpoints; nothing reads it.
        self.text_proj = LinearUniform(self.config.embed_dim)
        self.ta_head = LinearUniform(3)

    def __call__(self, image_bhwc, ids_bl, mask_bl):
        """Touches every parameter once; used to initialise them."""
        image_bnd, _ = self.encode_image(image_bhwc)
        text_bld = self.encode_text(ids_bl, mask_bl)
        self.text_proj(text_bld[:, 0])
        return self.assign(image_bnd, image_bnd, text_bld, mask_bl)

    def encode_image(self, image_bhwc):
        """Images `[b, s, s, 3]` -> tokens `[b, n, d]`, unit float32 features `[b, e]`."""
        image_bnd = self.visual_encoder(normalise_image(image_bhwc))
        return image_bnd, l2_normalise(self.vision_proj(image_bnd[:, 0]))

    def encode_text(self, ids_bl, mask_bl, deterministic=True):
        """Text ids and mask `[b, l]` -> states `[b, l, d]`."""
        return self.text_encoder.encode(ids_bl, mask_bl, deterministic)

    def assign(self, first_bnd, second_bnd, text_bld, mask_bl, deterministic=True):
        """Float32 logits `[b, 3]`: the text is of the first image, of the second, of neither."""
        fused = self.text_encoder.fuse_pairs(text_bld, mask_bl, first_bnd, second_bnd,
                                             deterministic, query_len=1)
        return self.ta_head(fused[:, 0].astype(jnp.float32))
