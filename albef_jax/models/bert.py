"""BERT, post-LN, split into a text encoder and a fusion encoder (ALBEF section 3.1).

The first layers see text only; every fusion layer adds cross-attention to the image tokens.
Fusion runs several *sets* of texts in one pass, `[s, b, l, d]`: all sets but the last read the
image of their own row, the last may read another row's. Image keys and values are projected
once per image, whatever the number of texts that read them (PERF.md section 2.1).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from albef_jax.models.fused import fused_attention, fuses
from albef_jax.models.layers import (
    NORMAL, Dense, Dropout, Dtype, HeadsDense, LayerNorm, Mlp, attention_probs, gelu,
    is_looked_into, padding_bias, visible,
)
from albef_jax.models.packing import Packing
from albef_jax.models.stack import Stacking
from albef_jax.parallel.axes import gathered, is_spread, named

LAYER_NORM_EPS = 1e-12
CACHE = "cache"  # collection of the keys and values of earlier words; see `SelfAttention`


class BertEmbeddings(nn.Module):
    """Word + position + token type, LayerNorm, dropout: `[b, l] -> [b, l, d]`.

    Token types are 0, or int32 `[b, l]` or `[l]`. Positions count from `first`, unless they are
    given, int32 `[b, l]`.
    """

    vocab_size: int
    max_positions: int
    width: int
    dropout: float
    dtype: Dtype
    pad_id: int = 0

    def setup(self):
        self.word = self.param("word", named(NORMAL, "vocab", "embed"),
                               (self.vocab_size, self.width))
        self.position = self.param("position", NORMAL, (self.max_positions, self.width))
        self.token_type = self.param("token_type", NORMAL, (2, self.width))
        self.norm = LayerNorm(LAYER_NORM_EPS, self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(self, ids_bl, deterministic, first=0, token_types=0, positions_bl=None):
        words = gathered(self.word, "vocab", "embed")[ids_bl]
        # torch's padding_idx: looking up [PAD] sends no gradient to its row.
        words = jnp.where(ids_bl[..., None] == self.pad_id, jax.lax.stop_gradient(words), words)
        position = (jax.lax.dynamic_slice_in_dim(self.position, first, ids_bl.shape[1])
                    if positions_bl is None else self.position[positions_bl])
        x = words + self.token_type[token_types] + position
        return self.drop(self.norm(x), deterministic)


class SelfAttention(nn.Module):
    """Self-attention sub-layer: attend, project, dropout, add, LayerNorm.

    Who calls `apply` with `key` and `value` `[b, n, h, k]` in the collection `CACHE` gives one word
    at a time: its key and value enter at the end, and the oldest ones leave at the front.
    """

    heads: int
    dropout: float
    attention_dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bld, bias, deterministic, query_len=None, packing=None):
        """`[b, l, d] -> [b, query_len or l, d]`: only the first `query_len` outputs if given.

        With a `packing` of the texts `[t, d] -> [t, d]`.
        """
        width = x_bld.shape[-1]
        q, k, v = HeadsDense(3, width, self.heads, self.dtype, name="qkv")(x_bld)
        if packing:
            rows = len(bias), bias.shape[-1], *q.shape[1:]
            q, k, v = (packing.unpack(x.reshape(-1, width)).reshape(rows) for x in (q, k, v))
        if self.has_variable(CACHE, "key"):
            k, v = self._remember("key", k), self._remember("value", v)
        probs = attention_probs(q[:, :query_len], k, bias)
        probs = Dropout(self.attention_dropout)(probs, deterministic).astype(v.dtype)
        y = jnp.einsum("bhqn,bnhk->bqhk", probs, v)
        y = checkpoint_name(y.reshape(*y.shape[:2], width), "attention")
        y = packing.pack(y) if packing else y
        y = Dense(width, self.dtype, axes=("heads", "embed"), name="output")(y)
        y = Dropout(self.dropout)(y, deterministic)
        x = x_bld if packing else x_bld[:, :query_len]
        return LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(x + y)

    def _remember(self, name, new_b1hk):
        old_bnhk = self.get_variable(CACHE, name)
        self.put_variable(CACHE, name, jnp.concatenate([old_bnhk[:, 1:], new_b1hk], axis=1))
        return self.get_variable(CACHE, name)


class CrossAttention(nn.Module):
    """Cross-attention sub-layer from texts to image tokens; `attention`: see `fused.fuses`."""

    width: int
    heads: int
    dropout: float
    attention_dropout: float
    dtype: Dtype
    attention: str = "plain"

    def setup(self):
        self.query = HeadsDense(1, self.width, self.heads, self.dtype)
        self.key_value = HeadsDense(2, self.width, self.heads, self.dtype)
        self.output = Dense(self.width, self.dtype, axes=("heads", "embed"))
        self.norm = LayerNorm(LAYER_NORM_EPS, self.dtype)
        self.drop = Dropout(self.dropout)
        self.drop_probs = Dropout(self.attention_dropout)

    def project(self, image_bnd):
        """Keys and values of images: `[b, n, h, k]` each, or side by side in one `[b, n, 2d]`."""
        fused = (fuses(self.attention, self.dtype, self.attention_dropout)
                 and not is_looked_into(self))
        return (self.key_value(image_bnd, joined=True),) if fused else self.key_value(image_bnd)

    def __call__(self, x_sbld, image_kv, swap_b, deterministic, bias=None, packing=None):
        """Every text set attends to image tokens: `[s, b, l, d] -> [s, b, l, d]`.

        With a `packing` of the texts `[s, b, l]` it is `[t, d] -> [t, d]`.

        Args:
          image_kv: keys and values of the images (`project`).
          swap_b: int32 `[b]` or None: the last set reads the images `swap_b`.
          bias: additive mask `[b, 1, 1, n]` of what is read, or None; only without `swap_b`.
        """
        q = self.query(x_sbld, joined=True)
        q = packing.unpack(q) if packing else q
        if swap_b is None:
            y = self._read(q, image_kv, deterministic, bias)
        else:
            own = [self._read(q[:-1], image_kv, deterministic)] if len(q) > 1 else []
            swapped = [x[swap_b] for x in image_kv]
            y = jnp.concatenate([*own, self._read(q[-1:], swapped, deterministic)])
        y = checkpoint_name(packing.pack(y) if packing else y, "attention")
        y = self.drop(self.output(y), deterministic)
        return self.norm(x_sbld + y)

    def _read(self, q_sbld, image_kv, deterministic, bias=None):
        """Attends with the sets side by side along the query axis; returns `[s, b, l, d]`."""
        s, b, l, d = q_sbld.shape
        q_bmd = q_sbld.swapaxes(0, 1).reshape(b, s * l, d)
        attend = self._attend_fused if len(image_kv) == 1 and bias is None else self._attend
        y_bmd = attend(q_bmd, image_kv, deterministic, bias)
        return y_bmd.reshape(b, s, l, d).swapaxes(0, 1)

    def _attend(self, q_bmd, image_kv, deterministic, bias):
        if len(image_kv) == 1:
            image_kv = jnp.split(image_kv[0], 2, axis=-1)
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in (q_bmd, *image_kv))
        probs = visible(self, attention_probs(q, k, bias))
        probs = self.drop_probs(probs, deterministic).astype(v.dtype)
        return jnp.einsum("bhqn,bnhk->bqhk", probs, v).reshape(q_bmd.shape)

    def _attend_fused(self, q_bmd, image_kv, deterministic, _):
        b, m, _ = q_bmd.shape
        keep = self.drop_probs.keep((b, self.heads, m, image_kv[0].shape[1]), deterministic)
        return fused_attention([q_bmd, *image_kv], keep, self.heads, self.drop_probs.share)


class FeedForward(nn.Module):
    """MLP sub-layer: `[..., d] -> [..., d]`."""

    hidden: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x, deterministic):
        y = Dropout(self.dropout)(Mlp(self.hidden, self.dtype, name="mlp")(x), deterministic)
        return LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(x + y)


class TextLayer(nn.Module):
    """One text-only BERT layer: `[b, l, d] -> [b, l, d]`, or packed `[t, d] -> [t, d]`."""

    heads: int
    mlp_width: int
    dropout: float
    attention_dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bld, bias, deterministic, packing=None):
        x = SelfAttention(self.heads, self.dropout, self.attention_dropout, self.dtype,
                          name="attention")(x_bld, bias, deterministic, packing=packing)
        return FeedForward(self.mlp_width, self.dropout, self.dtype, name="ffn")(x, deterministic)


class FusionLayer(nn.Module):
    """One fusion layer over text sets: self-attention, cross-attention, MLP."""

    width: int
    heads: int
    mlp_width: int
    dropout: float
    attention_dropout: float
    dtype: Dtype
    cross_attention: str = "plain"  # see `fused.fuses`

    def setup(self):
        rates = (self.dropout, self.attention_dropout)
        self.attention = SelfAttention(self.heads, *rates, self.dtype)
        self.cross = CrossAttention(self.width, self.heads, *rates, self.dtype,
                                    self.cross_attention)
        self.ffn = FeedForward(self.mlp_width, self.dropout, self.dtype)

    def project_image(self, image_bnd):
        """Keys and values that this layer's texts read; see `CrossAttention.project`."""
        return self.cross.project(image_bnd)

    def __call__(self, x_sbld, bias, image_kv, swap_b, deterministic, query_len=None,
                 select_m=None, cross_bias=None, packing=None):
        """`[s, b, l, d] -> [s, b, l, d]`, or only the part of the output that will be read.

        Args:
          packing: of packed texts, `[t, d] -> [t, d]`; see `CrossAttention`.
          bias: additive mask `[s*b, 1, 1, l]`, or `[s*b, 1, l, l]`.
          image_kv: from `project_image`. swap_b, cross_bias: see `CrossAttention`.
          query_len: compute only the first positions; the result is `[s, b, query_len, d]`.
          select_m: int32 positions of the flattened `[s*b*l]`; the result is `[m, d]`.
        """
        if packing:
            x = self.attention(x_sbld, bias, deterministic, packing=packing)
            x = self.cross(x, image_kv, swap_b, deterministic, cross_bias, packing)
            return self.ffn(x, deterministic)
        s, b, l, d = x_sbld.shape
        x = self.attention(x_sbld.reshape(s * b, l, d), bias, deterministic, query_len)
        x = self.cross(x.reshape(s, b, -1, d), image_kv, swap_b, deterministic, cross_bias)
        if select_m is not None:
            x = x.reshape(-1, d)[select_m]
        return self.ffn(x, deterministic)


class MlmHead(nn.Module):
    """Dense, GELU, LayerNorm, decoder tied to the word embeddings: `[..., d] -> [..., v]`."""

    vocab_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x, word_vd):
        h = Dense(x.shape[-1], self.dtype, name="dense")(x)
        h = LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(gelu(h))
        bias = self.param("bias", named(nn.initializers.zeros_init(), "vocab"), (self.vocab_size,))
        word_vd = gathered(word_vd.astype(self.dtype), "vocab", "embed")
        logits = jnp.einsum("...d,vd->...v", h, word_vd, preferred_element_type=jnp.float32)
        return logits + bias


class Bert(nn.Module):
    """Text encoder, fusion encoder and MLM head over one set of word embeddings.

    `width` is d, `dtype` that of the matrix products, `cross_attention` as in `fused.fuses`.
    With a `text_budget` only so large a share of the positions of texts is computed where dropout
    is on, that is in training; see `models.packing`.
    """

    vocab_size: int
    max_positions: int
    width: int
    text_layers: int
    fusion_layers: int
    heads: int
    mlp_width: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    stacking: Stacking = Stacking()  # of the layers of each encoder
    pad_id: int = 0
    cross_attention: str = "plain"
    text_budget: float = 0.0

    def setup(self):
        layer = (self.heads, self.mlp_width, self.dropout, self.attention_dropout, self.dtype)
        self.embeddings = BertEmbeddings(self.vocab_size, self.max_positions, self.width,
                                         self.dropout, self.dtype, self.pad_id)
        self.text = [TextLayer(*layer) for _ in range(self.text_layers)]
        self.fusion = [FusionLayer(self.width, *layer, self.cross_attention)
                       for _ in range(self.fusion_layers)]
        self.head = MlmHead(self.vocab_size, self.dtype)

    def encode(self, ids_bl, mask_bl, deterministic=True):
        """Text encoder: ids and mask `[b, l]` -> states `[b, l, d]`."""
        return self.encode_embedded(self.embeddings(ids_bl, deterministic), mask_bl, deterministic)

    def encode_embedded(self, x_bld, mask_bl, deterministic=True):
        """Text encoder on tokens that are embedded already: `[b, l, d] -> [b, l, d]`."""
        bias, packing = padding_bias(mask_bl), self._packing(mask_bl, deterministic)
        if packing is None:
            return self.stacking.run(self.text, x_bld,
                                     lambda layer, x: layer(x, bias, deterministic))
        x = self.stacking.run(self.text, packing.pack(x_bld),
                              lambda layer, x: layer(x, bias, deterministic, packing))
        return packing.unpack(x)

    def _packing(self, mask, deterministic):
        """Where texts are packed, how; a group of several devices keeps its padding."""
        packs = self.text_budget and not deterministic and not is_spread()
        return Packing.of(mask, self.text_budget) if packs else None

    def fuse(self, x_sbld, mask_sbl, image_bnd, swap_b=None, deterministic=True, query_len=None,
             select_m=None):
        """Fusion encoder: text states `[s, b, l, d]` and image tokens -> `[s, b, l, d]`.

        The last layer computes a part only with `query_len` or `select_m`; see `FusionLayer`.
        """
        x, bias = self._fusion_trunk(x_sbld, mask_sbl, image_bnd, swap_b, deterministic)
        return self.stacking.one(self.fusion[-1], x, lambda last, x: last(
            x, bias, last.project_image(image_bnd), swap_b, deterministic, query_len, select_m))

    def fuse_pairs(self, x_bld, mask_bl, first_bnd, second_bnd, deterministic=True, query_len=None):
        """Fusion layers in pairs, for texts about two images: `[b, l, d] -> [b, l, d]`.

        The first layer of a pair reads the first image, the second layer the second image, with
        the key and value projections of the first layer (ALBEF section 5, NLVR2).
        """
        bias = padding_bias(mask_bl)

        def fuse(pair, x, query_len=None):
            first, second = pair
            x = first(x, bias, first.project_image(first_bnd), None, deterministic)
            return second(x, bias, first.project_image(second_bnd), None, deterministic, query_len)

        *pairs, last = zip(self.fusion[::2], self.fusion[1::2])
        x = self.stacking.run(pairs, x_bld[None], fuse)
        return self.stacking.one(last, x, lambda pair, x: fuse(pair, x, query_len))[0]

    def fuse_for_losses(self, x_sbld, mask_sbl, image_bnd, swap_b, select_m, deterministic):
        """The fusion passes of MLM and ITM in one; the last layer only where it is read.

        The first set of texts is for MLM, the others are for ITM; `swap_b` as in `fuse`.

        Returns:
          MLM states `[m, d]` at `select_m`, positions of the first set flattened to `[b*l]`, and
          ITM states at [CLS] `[s-1, b, d]`.
        """
        x, bias = self._fusion_trunk(x_sbld, mask_sbl, image_bnd, swap_b, deterministic)
        b = x.shape[1]

        def fuse(last, x):
            kv = last.project_image(image_bnd)
            mlm_md = last(x[:1], bias[:b], kv, None, deterministic, select_m=select_m)
            itm_sb1d = last(x[1:], bias[b:], kv, swap_b, deterministic, query_len=1)
            return mlm_md, itm_sb1d[:, :, 0]

        return self.stacking.one(self.fusion[-1], x, fuse)

    def _fusion_trunk(self, x_sbld, mask_sbl, image_bnd, swap_b, deterministic):
        bias = padding_bias(mask_sbl.reshape(-1, mask_sbl.shape[-1]))

        packing = self._packing(mask_sbl, deterministic)

        def fuse(layer, x):
            return layer(x, bias, layer.project_image(image_bnd), swap_b, deterministic,
                         packing=packing)

        if packing is None:
            return self.stacking.run(self.fusion[:-1], x_sbld, fuse), bias
        x = self.stacking.run(self.fusion[:-1], packing.pack(x_sbld), fuse)
        return packing.unpack(x), bias

    def predict_words(self, x):
        """MLM head: states `[..., d]` -> float32 logits `[..., v]`."""
        return self.head(x, self.embeddings.word)
