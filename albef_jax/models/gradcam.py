"""Where a model looks: Grad-CAM on attention maps (ALBEF section 5, "Visual Grounding").

A heat map is an attention map times the positive part of the gradient of a score with respect to
that map, over the patches of the image, averaged over heads. Functions of the parameters, for the
model of a pre-training or retrieval run; the same ones serve the metric and the picture.
"""

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp

from albef_jax.errors import UserError
from albef_jax.models.layers import MAPS, OFFSETS


def itm_heat(model, params, image, text_ids, text_mask, layer=-1):
    """What each text token reads from the image, as far as it speaks for a match.

    Cross-attention of one fusion layer times the positive gradient of the match logit.

    Args:
      model: an `Albef`. params: its parameters. image: `[b, s, s, 3]` uint8, or normalised floats.
      text_ids, text_mask: int32 `[b, l]`; heat of padding is 0.
      layer: counted from the first text layer, as in BERT; -1: see `default_layer`; another one
        raises UserError. In the last layer only [CLS] is read: the heat of other tokens is 0.

    Returns:
      heat float32 `[b, l, g, g]`, over the g x g patches, and match logits float32 `[b, 2]`.
    """
    fusion = fusion_layer(model.config, layer)
    path = ("text_encoder", f"fusion_{fusion}", "cross")

    def score(variables):
        def match(module):
            image_bnd, _ = module.encode_image(image)
            text_bld, _ = module.encode_text(text_ids, text_mask)
            fused = module.text_encoder.fuse(text_bld[None], text_mask[None], image_bnd)[0]
            return module.itm_logits(fused[:, 0])

        logits_b2, maps = model.apply(variables, method=match, mutable=[MAPS])
        return jnp.sum(logits_b2[:, 1]), (logits_b2, maps)

    c = model.config
    shape = (len(text_ids), c.text_heads, text_ids.shape[1], 1 + grid(c) ** 2)
    probs_bhln, grads_bhln, logits_b2 = _differentiate(score, params, path, shape)
    real_b1l1 = text_mask[:, None, :, None]
    heat_bln = _product(probs_bhln * real_b1l1, grads_bhln * real_b1l1)
    return _as_grid(heat_bln, c), logits_b2


def itc_heat(model, params, image, text_ids, text_mask, block=-1):
    """What [CLS] of the image reads from the patches, as far as it speaks for the text.

    Self-attention of one ViT block times the positive gradient of the ITC similarity.

    `block` is counted from 0, -1 is the last one; UserError if there is none. See `itm_heat`.

    Returns:
      heat float32 `[b, g, g]`, and similarities over the temperature, float32 `[b]`.
    """
    c = model.config
    path = ("visual_encoder", f"block_{vit_block(c, block)}", "attn")

    def score(variables):
        def similarity(module):
            _, image_be = module.encode_image(image)
            _, text_be = module.encode_text(text_ids, text_mask)
            return jnp.sum(image_be * text_be, axis=-1) / params["temp"]

        similarity_b, maps = model.apply(variables, method=similarity, mutable=[MAPS])
        return jnp.sum(similarity_b), (similarity_b, maps)

    tokens = 1 + grid(c) ** 2
    shape = (len(image), c.vit_heads, tokens, tokens)
    probs_bhnn, grads_bhnn, similarity_b = _differentiate(score, params, path, shape)
    return _as_grid(_product(probs_bhnn[:, :, 0], grads_bhnn[:, :, 0]), c), similarity_b


def default_layer(config):
    """The third fusion layer (8 of 6 + 6), or of fewer than four the one before the last."""
    return config.text_layers + max(0, min(2, config.fusion_layers - 2))


def vit_block(config, block):
    """The number of a ViT block, -1 for the last; UserError if there is none."""
    if not -1 <= block < config.vit_depth:
        raise UserError(f"The ViT block {block} does not exist; choose one of 0 to "
                        f"{config.vit_depth - 1}.")
    return block if block >= 0 else config.vit_depth - 1


def fusion_layer(config, layer):
    """The number of a fusion layer counted from the first text layer; UserError if it is none."""
    first = config.text_layers
    layer = default_layer(config) if layer == -1 else layer
    if not first <= layer < first + config.fusion_layers:
        raise UserError(f"Layer {layer} reads no image; the fusion layers of this model are "
                        f"{first} to {first + config.fusion_layers - 1}.")
    return layer - first


def grid(config):
    """Patches along each side of the image."""
    return config.image_size // config.patch_size


def _differentiate(score, params, path, shape):
    """An attention map, its gradient of the score, and what the score is made of."""
    def of(offset):
        return score({"params": params, OFFSETS: unflatten_dict({(*path, "probs"): offset})})

    grads, (made_of, maps) = jax.grad(of, has_aux=True)(jnp.zeros(shape, jnp.float32))
    return flatten_dict(maps[MAPS])[*path, "probs"][0], grads, made_of


def _product(probs, grads):
    """Map times positive gradient over the patches, mean over heads: `[b, h, ..., 1+n]` -> n."""
    return jnp.mean(probs[..., 1:] * jax.nn.relu(grads[..., 1:]), axis=1)


def _as_grid(heat, config):
    return heat.reshape(*heat.shape[:-1], grid(config), grid(config))
