"""A small held-out set and a model small enough to be written down: linear maps on pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import default_config, load_config
from albef_jax.core.build import build as build_parts
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer, train_tokenizer
from albef_jax.evaluators import make_evaluator
from albef_jax.evaluators.base import Forward
from albef_jax.parallel.mesh import make_mesh

WORDS = "red green blue small large round flat dog cat bird boat house runs sits over under".split()
SIZE, LENGTH, WIDTH, PATCHES = 16, 10, 12, 4


def write_source(path, images, captions_per_image=2, seed=0):
    """An arrays file of random images with random captions of 2 to 8 words; its config block."""
    rng = np.random.default_rng(seed)
    captions = [[" ".join(rng.choice(WORDS, rng.integers(2, 9)))
                 for _ in range(captions_per_image)] for _ in range(images)]
    np.savez(path, image=rng.integers(0, 256, (images, SIZE, SIZE, 3), np.uint8),
             caption=np.array(captions))
    return {"kind": "arrays", "path": str(path)}


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def encode_image(params, image):
    """Rows of pixels as patches, projected: embeddings `[b, 4, d]` and features `[b, d]`."""
    patches = image.astype(jnp.float32).reshape(len(image), PATCHES, -1) / 255 - 0.5
    embeds = patches @ params["pixel"]
    return embeds, unit(embeds[:, 0])


def encode_text(params, text_ids, text_mask):
    """Word vectors and their masked mean: `[b, l, d]`, `[b, d]`."""
    embeds = params["word"][text_ids] + params["position"][: text_ids.shape[1]]
    weights = text_mask[..., None].astype(jnp.float32)
    return embeds, unit((embeds * weights).sum(1) / weights.sum(1))


def match(params, image_embeds, text_embeds, text_mask):
    """Attention of words to patches, then a linear head: `[b, 2]`."""
    attention = jnp.exp(jnp.einsum("bld,bnd->bln", text_embeds, image_embeds) / WIDTH)
    read = attention @ image_embeds / attention.sum(-1, keepdims=True)
    weights = text_mask[..., None].astype(jnp.float32)
    return (jnp.tanh(read * text_embeds) * weights).sum(1) / weights.sum(1) @ params["head"]


def mlm_logits(params, image_embeds, masked_ids, text_mask):
    """The mean of the other words and the image, compared with every word: `[b, l, v]`."""
    text, _ = encode_text(params, masked_ids, text_mask)
    words = (text * text_mask[..., None]).mean(1, keepdims=True)
    context = words + image_embeds.mean(1, keepdims=True)
    return jnp.tanh(text + context) @ params["word"].T


@pytest.fixture
def predict_fns():
    return dict(encode_image=encode_image, encode_text=encode_text, match=match,
                mlm_logits=mlm_logits)


@pytest.fixture
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 5, 200)


@pytest.fixture
def params(tokenizer):
    rng = np.random.default_rng(7)
    shapes = dict(pixel=(SIZE * SIZE * 3 // PATCHES, WIDTH), word=(tokenizer.vocab_size, WIDTH),
                  position=(LENGTH, WIDTH), head=(WIDTH, 2))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def config_of():
    """`config_of(task)` -> a config for images of 16 pixels and texts of 10 tokens."""
    def make(task):
        config = default_config(task)
        config.model.update(image_size=SIZE, patch_size=SIZE)
        config.data.update(text_length=LENGTH, engine="pillow", workers=2)
        return config

    return make


@pytest.fixture
def config(config_of):
    return config_of("pretrain")


@pytest.fixture
def build(config, tokenizer):
    """`build(kind, source, **options)` -> an evaluator; `batch_size` is 8 unless given."""
    def make(kind, source, seed=0, **options):
        config.seed = seed
        block = dict(kind=kind, source=source, batch_size=8) | options
        return make_evaluator("held", block, config, tokenizer)

    return make


@pytest.fixture
def evaluate():
    """`evaluate(evaluator, params, functions)` -> its values; they are those that it promised."""
    def run(evaluator, params, functions):
        values = dict(evaluator.run(Forward(params, functions, make_mesh())))
        assert list(values) == list(evaluator.names())
        return values

    return run


@pytest.fixture
def make_source_block(tmp_path):
    """`make_source_block(images, captions_per_image=2)` -> a source block."""
    def make(images, captions_per_image=2):
        return write_source(tmp_path / f"held_out_{images}_{captions_per_image}.npz", images,
                            captions_per_image)
    return make


@pytest.fixture(scope="session")
def fresh_imagebert():
    """`fresh_imagebert(variant)` -> config of tests/tiny_imagebert.py, its tokenizer, and a fresh
    model whose outputs differ."""
    def make(variant=""):
        config = load_config(f"tests/tiny_imagebert.py:{variant}").unlock()
        tokenizer = make_tokenizer(config.data, make_source(config.data.source))
        config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                            cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
                            mask_id=tokenizer.mask_id, init_std=0.3)
        mesh = make_mesh()
        parts = build_parts(config.lock(), mesh)
        return config, tokenizer, Forward(parts.create_state().params, parts.task.predict_fns(),
                                          mesh)

    return make
