"""Vision Transformer, pre-LN, with a [CLS] token (ALBEF section 3.1; DeiT-B/16 layout)."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from albef_jax.models.fused import fused_attention, fuses
from albef_jax.models.layers import (
    OFFICIAL_STD, Dense, Dtype, HeadsDense, LayerNorm, Mlp, attention_probs, gelu, is_looked_into,
    scaled, visible,
)
from albef_jax.models.stack import Stacking

TRUNCATED = scaled(nn.initializers.truncated_normal(OFFICIAL_STD))
LAYER_NORM_EPS = 1e-6


def patchify(image_bhwc, patch_size):
    """Cuts images into flattened patches, row-major: `[b, h, w, c] -> [b, n, p*p*c]`."""
    b, height, width, c = image_bhwc.shape
    rows, cols = height // patch_size, width // patch_size
    x = image_bhwc.reshape(b, rows, patch_size, cols, patch_size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * cols, patch_size * patch_size * c)


class VitAttention(nn.Module):
    """Self-attention of all tokens: `[b, n, d] -> [b, n, d]`; `attention`: see `fused.fuses`."""

    heads: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = TRUNCATED
    qkv_init: nn.initializers.Initializer = TRUNCATED
    attention: str = "plain"

    @nn.compact
    def __call__(self, x_bnd, bias=None):
        width = x_bnd.shape[-1]
        qkv = HeadsDense(3, width, self.heads, self.dtype, self.qkv_init, name="qkv")
        if bias is None and fuses(self.attention, self.dtype) and not is_looked_into(self):
            x = fused_attention([qkv(x_bnd, joined=True)], None, self.heads)
        else:
            q, k, v = qkv(x_bnd)
            probs = visible(self, attention_probs(q, k, bias)).astype(v.dtype)
            x = jnp.einsum("bhqn,bnhk->bqhk", probs, v).reshape(x_bnd.shape)
        x = checkpoint_name(x, "attention")
        return Dense(width, self.dtype, self.kernel_init, axes=("heads", "embed"), name="proj")(x)


class VitBlock(nn.Module):
    """Pre-LN transformer block: `[b, n, d] -> [b, n, d]`; `bias`: see `attention_probs`.

    Attributes:
      heads, mlp_width: sizes. dtype: of the matrix products.
      kernel_init: of all kernels but those of queries, keys and values, which have `qkv_init`.
      activation: of the MLP. epsilon: of both norms. attention: see `fused.fuses`.
    """

    heads: int
    mlp_width: int
    dtype: Dtype
    kernel_init: nn.initializers.Initializer = TRUNCATED
    qkv_init: nn.initializers.Initializer = TRUNCATED
    activation: Callable = gelu
    epsilon: float = LAYER_NORM_EPS
    attention: str = "plain"

    @nn.compact
    def __call__(self, x_bnd, bias=None):
        y = LayerNorm(self.epsilon, self.dtype, name="norm1")(x_bnd)
        x = x_bnd + VitAttention(self.heads, self.dtype, self.kernel_init, self.qkv_init,
                                 self.attention, name="attn")(y, bias)
        y = LayerNorm(self.epsilon, self.dtype, name="norm2")(x)
        return x + Mlp(self.mlp_width, self.dtype, self.kernel_init, self.activation,
                       name="mlp")(y)


class VisionTransformer(nn.Module):
    """Images to tokens.

    Attributes:
      image_size, patch_size: sides in pixels of the square input and of a patch, which divides it.
      width: channels d. depth: blocks. heads: attention heads. mlp_ratio: MLP width / d.
      dtype: of the matrix products. stacking: how the blocks are run. attention: see
        `fused.fuses`.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    dtype: Dtype = jnp.float32
    stacking: Stacking = Stacking()
    attention: str = "plain"

    @nn.compact
    def __call__(self, image_bhwc):
        """Normalised images `[b, s, s, 3]` -> all tokens after the last norm `[b, 1+n, d]`."""
        patches = patchify(image_bhwc.astype(self.dtype), self.patch_size)
        fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        x = Dense(self.width, self.dtype, fan_in_uniform, axes=(None, "embed"),
                  name="patch_embed")(patches)
        cls = self.param("cls_token", TRUNCATED, (1, 1, self.width))
        pos = self.param("pos_embed", TRUNCATED, (1, 1 + x.shape[1], self.width))
        cls = jnp.broadcast_to(cls, (x.shape[0], 1, self.width))
        x = (jnp.concatenate([cls, x], axis=1) + pos).astype(self.dtype)
        blocks = [VitBlock(self.heads, int(self.width * self.mlp_ratio), self.dtype,
                           attention=self.attention, name=f"block_{i}")
                  for i in range(self.depth)]
        x = self.stacking.run(blocks, x, lambda block, x: block(x))
        return LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(x)
