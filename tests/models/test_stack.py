"""Layers in a loop or recomputed: the same values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.models.bert import Bert
from albef_jax.models.stack import Stacking
from albef_jax.models.vit import VisionTransformer


class Towers(nn.Module):
    """An image encoder and a BERT of several layers each."""

    stacking: Stacking
    dropout: float = 0.0

    def setup(self):
        self.vit = VisionTransformer(16, 8, 8, depth=2, heads=2, mlp_ratio=2.0,
                                     stacking=self.stacking)
        self.bert = Bert(20, 8, 8, text_layers=1, fusion_layers=3, heads=2, mlp_width=16,
                         dropout=self.dropout, attention_dropout=self.dropout,
                         stacking=self.stacking)

    def __call__(self, image, ids_bl, deterministic=True):
        mask_bl = jnp.ones_like(ids_bl)
        image_bnd = self.vit(image)
        text_bld = self.bert.encode(ids_bl, mask_bl, deterministic)
        return self.bert.fuse(text_bld[None], mask_bl[None], image_bnd,
                              deterministic=deterministic)


IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
IDS = jax.random.randint(jax.random.key(1), (2, 4), 1, 20)
DIRECTION = jax.random.normal(jax.random.key(4), (2, 4, 8))


@functools.cache
def parameters():
    fresh = nn.unbox(jax.jit(Towers(Stacking()).init)(jax.random.key(2), IMAGE, IDS)["params"])
    return jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, fresh)


@functools.cache
def value_and_gradients(stacking, dropout):
    def loss(params):
        states = Towers(stacking, dropout).apply(
            {"params": params}, IMAGE, IDS, not dropout, rngs={"dropout": jax.random.key(3)})
        return jnp.sum(states * DIRECTION)

    value, grads = jax.jit(jax.value_and_grad(loss))(parameters())
    return float(value), grads


@pytest.mark.parametrize("stacking, dropout", [
    (Stacking(scan=True, remat=True, save=("qkv", "mlp")), 0.0),
    # The draws are those without remat.
    pytest.param(Stacking(remat=True, save=("attention",)), 0.1, marks=pytest.mark.slow),
], ids=["scan", "remat"])
def test_the_same_values_and_gradients(stacking, dropout):
    expected, grads = value_and_gradients(Stacking(), dropout)
    value, other = value_and_gradients(stacking, dropout)
    assert value == pytest.approx(expected, rel=1e-5)
    assert float(jnp.max(jnp.abs(grads["vit"]["block_1"]["mlp"]["fc1"]["kernel"]))) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max()),
                 grads, other)


@pytest.mark.slow
def test_a_scanned_stack_has_dropout():
    without, plain, scanned = (
        value_and_gradients(Stacking(scan), dropout)[0]
        for scan, dropout in ((True, 0.0), (False, 0.1), (True, 0.1)))
    assert len({without, plain, scanned}) == 3  # other draws than an unrolled one


def test_a_loop_is_one_layer_of_program():
    def size(scan):
        towers = Towers(Stacking(scan=scan))
        apply = jax.jit(lambda: towers.apply({"params": parameters()}, IMAGE, IDS))
        return apply.lower().as_text().count("dot_general")

    # The patches, then 6 products per layer and 11 with cross-attention; the last fusion layer,
    # of which fewer positions may be wanted, stays out of the loop.
    assert size(False) == 1 + 2 * 6 + 6 + 3 * 11
    assert size(True) == 1 + 6 + 6 + 2 * 11
