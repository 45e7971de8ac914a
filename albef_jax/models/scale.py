"""SCALE (M5Product, arXiv 2109.04275): five encoders and a Joint Co-Transformer (JCT).

Every modality has its own encoder and its own CLS token, which contrastive learning compares. The
tokens of all modalities together go through the JCT, whose CLS tokens are the features of a
product. Modalities are called by a letter: t title, i image (regions), p table (properties), v
video, a audio.
"""

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from albef_jax.models.bert import LAYER_NORM_EPS, BertEmbeddings, MlmHead, TextLayer
from albef_jax.models.layers import (
    NORMAL,
    Dense,
    Dropout,
    Dtype,
    LayerNorm,
    gelu,
    padding_bias,
    quick_gelu,
)
from albef_jax.models.stack import stacking
from albef_jax.models.vit import VitBlock

# Letter -> the name of its arrays in a batch, in the order of scores and of pairs.
MODALITIES = {"t": "title", "i": "regions", "p": "table", "v": "video", "a": "audio"}
JCT_ORDER = "tpiva"  # of the tokens in the JCT, and of its CLS tokens in a classifier
WORDS, FEATURES = "tp", "iva"  # modalities of words, and of features whose mean is the CLS token
SHARED = {"p": "t", "v": "i"}  # whose encoder these go through in the released code
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 1.0)  # x1, y1, x2, y2 and area of the global token
PADDED = -1e6  # of the JCT's attention mask


class Size(NamedTuple):
    """Of a modality: the most tokens it has, the CLS token included, and the width of its features,
    0 for words. Where in the JCT it begins does not depend on which others there are."""

    letter: str
    tokens: int
    width: int


class Encoded(NamedTuple):
    """What the trunk makes of a batch: dicts by letter, of the modalities of the model.

    Attributes:
      mask: int32 `[b, l]`, 1 for tokens that are attended to, the CLS token first.
      embedded, unimodal, joint: states `[b, l, d]` before the encoders, after them, after the JCT.
      projected: float32 `[b, p]`, for contrast; empty in a model without projections.
    """

    mask: dict[str, jax.Array]
    embedded: dict[str, jax.Array]
    unimodal: dict[str, jax.Array]
    joint: dict[str, jax.Array]
    projected: dict[str, jax.Array]


class FeatureEmbeddings(nn.Module):
    """Features `[b, n, w]` and their mean before them as tokens `[b, 1 + n, d]`.

    Their places are boxes `[b, n, 5]`, or positions where `max_positions` is not 0.
    """

    width: int
    max_positions: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, features, mask, deterministic, box=None):
        x = Dense(self.width, self.dtype, axes=(None, "embed"), name="feature")(
            with_mean(features, mask))
        if self.max_positions:
            position = self.param("position", NORMAL, (self.max_positions, self.width))
            x = x + position[:x.shape[1]]
        else:
            whole = jnp.broadcast_to(jnp.array(WHOLE_IMAGE, box.dtype), (len(box), 1, 5))
            x = x + Dense(self.width, self.dtype, axes=(None, "embed"), name="box")(
                jnp.concatenate([whole, box], axis=1))
        x = LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(x)
        return Dropout(self.dropout)(x, deterministic)


def with_mean(features_bnw, mask_bn):
    """The mean of the real features, then the features: float32 `[b, 1 + n, w]`."""
    features = features_bnw.astype(jnp.float32)
    real = jnp.maximum(jnp.sum(mask_bn, axis=1), 1)
    total = jnp.sum(features * mask_bn[..., None], axis=1)
    return jnp.concatenate([(total / real[:, None])[:, None], features], axis=1)


class FeatureHead(nn.Module):
    """Dense, GELU, LayerNorm, dense: states `[..., d]` -> float32 features `[..., features]`."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x):
        h = Dense(x.shape[-1], self.dtype, name="dense")(x)
        h = LayerNorm(LAYER_NORM_EPS, self.dtype, name="norm")(gelu(h))
        return Dense(self.features, self.dtype, axes=("embed", None),
                     name="output")(h).astype(jnp.float32)


def encoder_of(config, letter):
    """The letter of the modality whose encoder a modality goes through."""
    return SHARED.get(letter, letter) if config.share_encoders else letter


def embeddings_of(config, letter):
    """The letter of the modality whose embeddings a modality has."""
    return "t" if letter == "p" and config.table_embeddings == "shared" else letter


def is_subset(letters, known):
    """Whether letters are some of the known ones, at least one, each once."""
    return bool(letters) and set(letters) <= set(known) and len({*letters}) == len(letters)


def withheld(arrays, kept):
    """A batch in which some modalities are seen, and of the others nothing but a CLS token.

    Args:
      arrays: of a batch, by name. kept: letters of the modalities that are seen; or by letter bool
        `[b]`, of which examples they are.
    """
    blank = {}
    for letter, name in MODALITIES.items():
        if f"{name}_mask" not in arrays:
            continue
        mask = jnp.asarray(arrays[f"{name}_mask"])
        seen_b = kept[letter] if isinstance(kept, dict) else jnp.full(len(mask), letter in kept)
        kept_mask = mask * seen_b[:, None]
        blank[f"{name}_mask"] = (kept_mask.at[:, 0].set(mask[:, 0]) if letter in WORDS
                                 else kept_mask)
        if letter in FEATURES:
            blank[name] = arrays[name] * seen_b[:, None, None]
        if f"{name}_present" in arrays:
            blank[f"{name}_present"] = arrays[f"{name}_present"] & seen_b
    return {**arrays, **blank}


class Scale(nn.Module):
    """The model of pre-training; without heads, the trunk of fine-tuning.

    Batches are dicts of arrays by name: `title_ids`, `title_mask`, `table_ids`, `table_mask` int32
    `[b, l]`, `regions`, `video`, `audio` float `[b, n, w]`, their `..._mask` int32 `[b, n]`,
    `regions_box` float `[b, n, 5]`, and where `missing_policy` is 'zero_mask' `..._present` bool
    `[b]`.

    Attributes:
      config: the `model` block of a config.
      sizes: a `Size` for each of `JCT_ORDER`.
      heads: with projections and masked heads.
    """

    config: Any
    sizes: tuple[Size, ...]
    heads: bool = True

    def setup(self):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        owners = [embeddings_of(c, m) for m in c.modalities]
        if self.heads and set(c.modalities) & set(WORDS):
            owners.append("t")  # the words of the masked head
        self.embeddings = {MODALITIES[m]: self._make_embeddings(m) for m in dict.fromkeys(owners)}
        self.encoders = {MODALITIES[m]: self._make_encoder(m) for m in dict.fromkeys(
            encoder_of(c, m) for m in c.modalities)}
        self.jct_position = self.param("jct_position", NORMAL, (c.max_jct, c.width))
        self.jct = [VitBlock(c.jct_heads, c.jct_mlp_width, dtype, NORMAL,
                             nn.initializers.xavier_uniform(), quick_gelu, LAYER_NORM_EPS)
                    for _ in range(c.jct_layers)]
        self.drop = Dropout(c.dropout)
        if self.heads:
            self.projections = {MODALITIES[m]: Dense(c.embed_dim, jnp.float32)
                                for m in c.modalities}
            self.masked_heads = {name: self._make_head(name) for name in dict.fromkeys(
                "words" if m in WORDS else MODALITIES[m] for m in c.modalities)}

    def _make_embeddings(self, letter):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if letter in WORDS:
            return BertEmbeddings(c.vocab_size, c.max_positions, c.width, c.dropout, dtype,
                                  c.pad_id)
        positions = {"i": 0, "v": c.max_video, "a": c.max_audio}[letter]
        return FeatureEmbeddings(c.width, positions, c.dropout, dtype)

    def _make_encoder(self, letter):
        c = self.config
        sizes = (c.text_heads, c.text_mlp_width) if letter in WORDS else (
            c.visual_heads, c.visual_mlp_width)
        return [TextLayer(*sizes, c.dropout, c.attention_dropout, jnp.dtype(c.dtype))
                for _ in range(c.layers)]

    def _make_head(self, name):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if name == "words":
            return MlmHead(c.vocab_size, dtype)
        (width,) = (size.width for size in self.sizes if MODALITIES[size.letter] == name)
        return FeatureHead(width, dtype)

    def __call__(self, arrays):
        """Touches every parameter once; used to initialise them."""
        encoded = self.encode(arrays)
        if not self.heads:
            return encoded
        return {m: self.predict(m, states) for m, states in encoded.joint.items()}

    def encode(self, arrays, deterministic=True):
        """A batch -> `Encoded`."""
        c = self.config
        mask = {m: self._mask(m, arrays) for m in c.modalities}
        embedded = {m: self._embed(m, arrays, deterministic) for m in c.modalities}
        unimodal = {m: self._encode(m, embedded[m], mask[m], deterministic) for m in c.modalities}
        joint = self._join(unimodal, mask, deterministic)
        projected = {m: jax.nn.relu(self.projections[MODALITIES[m]](x[:, 0].astype(jnp.float32)))
                     for m, x in unimodal.items() if self.heads}
        return Encoded(mask, embedded, unimodal, joint, projected)

    def predict(self, letter, states):
        """The masked head of a modality: states `[..., d]` -> float32 logits or features."""
        if letter in WORDS:
            return self.masked_heads["words"](states, self.embeddings["title"].word)
        return self.masked_heads[MODALITIES[letter]](states)

    def _mask(self, letter, arrays):
        """What is attended to: the CLS token always."""
        name = MODALITIES[letter]
        mask = jnp.asarray(arrays[f"{name}_mask"], jnp.int32)
        if self.config.missing_policy == "zero_mask":
            mask = mask * arrays[f"{name}_present"][:, None]
        if letter in WORDS:
            return mask.at[:, 0].set(1)
        return jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)

    def _embed(self, letter, arrays, deterministic):
        name = MODALITIES[letter]
        embeddings = self.embeddings[MODALITIES[embeddings_of(self.config, letter)]]
        if letter in FEATURES:
            return embeddings(arrays[name], arrays[f"{name}_mask"], deterministic,
                              arrays.get(f"{name}_box"))
        ids = arrays[f"{name}_ids"]
        segments = 0
        if letter == "p" and self.config.table_segment:
            segments = jnp.minimum(jnp.arange(ids.shape[1]), 1)  # [CLS] stays in segment 0
        return embeddings(ids, deterministic, token_types=segments)

    def _encode(self, letter, x_bld, mask_bl, deterministic):
        bias = padding_bias(mask_bl)
        return stacking(self.config).run(
            self.encoders[MODALITIES[encoder_of(self.config, letter)]], x_bld,
            lambda layer, x: layer(x, bias, deterministic))

    def _join(self, states, masks, deterministic):
        """The JCT: states by letter `[b, l, d]` -> the same after all have seen each other."""
        order = [m for m in JCT_ORDER if m in states]
        starts = dict(zip(JCT_ORDER, itertools.accumulate(
            (size.tokens for size in self.sizes), initial=0)))
        tokens = [states[m].shape[1] for m in order]
        position = jnp.concatenate([self.jct_position[starts[m]:starts[m] + n]
                                    for m, n in zip(order, tokens)])
        x = jnp.concatenate([states[m] for m in order], axis=1)
        x = self.drop((x + position).astype(x.dtype), deterministic)
        bias = self._jct_bias(jnp.concatenate([masks[m] for m in order], axis=1))
        x = stacking(self.config).run(self.jct, x, lambda block, x: block(x, bias))
        return dict(zip(order, jnp.split(x, list(itertools.accumulate(tokens))[:-1], axis=1)))

    def _jct_bias(self, mask_bl):
        """The additive mask, `[b, 1, 1, l]`; as in the released code `[b, h, 1, l]`.

        That code lays the masks out by head and reads them by example, so that head h of example b
        has the mask of example (b h_max + h) mod b_max.
        """
        if self.config.jct_mask == "own":
            return padding_bias(mask_bl, PADDED)
        b, heads = len(mask_bl), self.config.jct_heads
        mixed = mask_bl[jnp.arange(b * heads) % b]
        return padding_bias(mixed, PADDED).reshape(b, heads, 1, -1)


class ScaleClassifier(nn.Module):
    """Products to classes: the joint CLS tokens, linear, dropout, linear (SCALE.md 13.2).

    Attributes:
      config, sizes: see `Scale`.
    """

    config: Any
    sizes: tuple[Size, ...]

    def setup(self):
        c = self.config
        self.trunk = Scale(c, self.sizes, heads=False)
        self.hidden = Dense(c.embed_dim, jnp.float32)
        self.drop = Dropout(c.dropout)
        self.classes = Dense(c.classes, jnp.float32)

    def __call__(self, arrays, deterministic=True):
        """A batch (see `Scale`) -> float32 logits `[b, classes]`, hidden features `[b, p]`, and
        the joint CLS tokens by letter `[b, d]`."""
        joint = self.trunk.encode(arrays, deterministic).joint
        cls = {m: joint[m][:, 0].astype(jnp.float32) for m in JCT_ORDER if m in joint}
        hidden_bp = self.hidden(jnp.concatenate([*cls.values()], axis=-1))
        return self.classes(self.drop(hidden_bp, deterministic)), hidden_bp, cls
