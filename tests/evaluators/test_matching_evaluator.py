"""ITM accuracy: the pairs that are asked, the draws, and the balance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.data.sources.arrays import ArraySource
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators.matching import (
    candidates, negative_pairs, one_text_per_image, sample, split_groups,
)


PARAMS = {"temp": 0.07}


def own_image_match(threshold_to_images):
    """A matching head that knows: the image's number is written into its first pixel, the text's
    into its words, so the right answer can be computed; see `numbered_source`."""
    def match(params, image_embeds, text_embeds, text_mask):
        gap = jnp.abs(image_embeds[:, 0, 0] - text_embeds[:, 0, 0])
        score = jnp.where(gap < 0.5, 1.0, -1.0) * threshold_to_images
        return jnp.stack([-score, score], -1)
    return match


WORDS = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]


@pytest.fixture
def tokenizer():
    return train_tokenizer(WORDS * 3, 300)


@pytest.fixture
def numbered(tmp_path, tokenizer):
    """80 images whose first pixel is their number and whose only word names the number."""
    image = np.zeros((80, 16, 16, 3), np.uint8)
    image[:, 0, 0, 0] = np.arange(80)
    np.savez(tmp_path / "numbered.npz", image=image, caption=np.array(WORDS[:80]))
    ids, _ = tokenizer.encode(WORDS[:80], 10)
    number = np.full(tokenizer.vocab_size, -1.0, np.float32)
    number[ids[:, 1]] = np.arange(80)
    assert len(set(ids[:, 1])) == 80 and (ids[:, 2] == tokenizer.pad_id).all()

    def encode_image(params, image):
        value = image[:, 0, 0, :1].astype(jnp.float32)
        angle = value * 2 * jnp.pi / 80
        return value[:, :, None], jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)

    def encode_text(params, text_ids, text_mask):
        value = jnp.asarray(number)[text_ids[:, 1:2]]
        angle = value * 2 * jnp.pi / 80
        return value[:, :, None], jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)

    source = dict(kind="arrays", path=str(tmp_path / "numbered.npz"))
    return source, dict(encode_image=encode_image, encode_text=encode_text)


@pytest.mark.parametrize("sign, accuracy", [(1, 100.0), (-1, 0.0)])
def test_no_negative_is_a_pair_and_no_pair_a_negative(numbered, build, evaluate, sign, accuracy):
    source, functions = numbered
    values = evaluate(build("matching", source), PARAMS, functions | {"match": own_image_match(sign)})
    assert values == {"itm_accuracy_random": accuracy, "itm_accuracy_hard": accuracy}


def test_a_constant_answer_scores_half(numbered, build, evaluate):
    source, functions = numbered
    for logits in ((0.0, 1.0), (1.0, 0.0)):
        def match(params, image_embeds, text_embeds, text_mask, logits=logits):
            return jnp.broadcast_to(jnp.array(logits), (len(image_embeds), 2))
        values = evaluate(build("matching", source), PARAMS, functions | {"match": match})
        assert values == {"itm_accuracy_random": 50.0, "itm_accuracy_hard": 50.0}


def test_hard_negatives_are_similar_and_random_ones_are_not(numbered, build, evaluate):
    """A head that calls everything within 10 of the right number a match: only near negatives
    fool it."""
    source, functions = numbered

    def lenient(params, image_embeds, text_embeds, text_mask):
        gap = jnp.abs(image_embeds[:, 0, 0] - text_embeds[:, 0, 0])
        near = jnp.where(jnp.minimum(gap, 80 - gap) <= 10, 1.0, -1.0)
        return jnp.stack([-near, near], -1)

    near, own = (evaluate(build("matching", source, temperature=temperature), params,
                          functions | {"match": lenient})
                 for temperature, params in ((0.02, PARAMS), (0.0, {"temp": 0.02})))
    assert near == own  # that of the model, if no other is given
    assert near["itm_accuracy_random"] > 75
    assert near["itm_accuracy_hard"] < 65


def test_same_seed_same_questions(numbered, build, evaluate):
    """A head that looks at the parity of the text: which texts are asked decides its accuracy."""
    source, functions = numbered

    def odd(params, image_embeds, text_embeds, text_mask):
        score = text_embeds[:, 0, 0] % 2 - 0.5
        return jnp.stack([-score, score], -1)

    runs = [evaluate(build("matching", source, seed=seed, group_size=8, batch_size=size), PARAMS,
                     functions | {"match": odd}) for seed, size in ((3, 5), (3, 64), (4, 5))]
    assert runs[0] == runs[1] != runs[2]


def test_an_image_listed_twice_counts_once(tmp_path, build):
    np.savez(tmp_path / "twice.npz", image=np.zeros((4, 16, 16, 3), np.uint8),
             caption=np.array(["aa bb", "cc dd", "ee", "ff"]), image_id=np.array([4, 5, 4, 6]))
    source = dict(kind="arrays", path=str(tmp_path / "twice.npz"))
    assert build("matching", source).description == "3 pairs in groups of 64"
    with pytest.raises(UserError, match="at least two different images"):
        build("matching", source, max_images=1)


def test_groups_drop_only_a_lone_pair():
    assert [len(g) for g in split_groups(np.arange(9), 4)] == [4, 4]
    assert [len(g) for g in split_groups(np.arange(10), 4)] == [4, 4, 2]


def test_one_text_of_every_image_uniformly():
    image_of_text = np.array([5, 5, 5, 2, 2, 9])
    drawn = [one_text_per_image(image_of_text, np.random.default_rng(s)) for s in range(300)]
    assert all(sorted(image_of_text[texts]) == [2, 5, 9] for texts in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts[:3].min() > 70 and counts[3:5].min() > 120 and counts[5] == 300


def test_sample_follows_the_softmax():
    logits = np.array([[0.0, 1.0, -np.inf, 2.0]])
    draws = sample(np.repeat(logits, 4000, 0), (np.arange(4000) + 0.5) / 4000)
    expected = np.exp([0, 1, -np.inf, 2]) / np.exp([0, 1, -np.inf, 2]).sum()
    np.testing.assert_allclose(np.bincount(draws, minlength=4) / 4000, expected, atol=1e-3)


def test_negatives_keep_one_side_in_turn():
    sims = np.random.default_rng(0).normal(size=(6, 6)) * 5
    sims[:, 2] = [0, 0, 900, 0, 40, 0]  # text 2: after its own image, image 4 is the nearest
    sims[3] = [40, 0, 0, 900, 0, 0]     # image 3: after its own text, text 0 is the nearest
    image, text = negative_pairs(sims, np.full(6, 0.5), candidates(np.eye(6, dtype=bool)))
    assert (image != text).all()
    assert (text[::2] == [0, 2, 4]).all() and (image[1::2] == [1, 3, 5]).all()
    assert image[2] == 4 and text[3] == 0


def test_a_true_text_is_no_negative():
    """Text 0 is true of images 0 to 3, image 1 is described by every text: only 0 of 1 is left."""
    describes = np.eye(5, dtype=bool)
    describes[:4, 0] = describes[1] = True
    for seed in range(50):
        uniform = np.random.default_rng(seed).random(5)
        image, text = negative_pairs(np.zeros((5, 5)), uniform, candidates(describes))
        assert image.tolist()[0] == 4 and text.tolist()[0] == 0
        assert not describes[image, text].any()
        assert len(image) == 4  # pair 1 keeps its image, of which every text is true
        assert (text[[0, 1, 3]] == [0, 2, 4]).all() and image[2] == 3


class _KnowsMore(ArraySource):
    """Captions of the first three images are true of each other, that of image 3 of all."""

    def describes(self, owner, caption, index):
        return owner == index or max(owner, index) < 3 or owner == 3


def test_what_the_source_knows_to_be_true_is_not_asked(numbered, build, evaluate):
    source, functions = numbered
    source = _KnowsMore(source["path"])
    assert build("matching", source).description in (
        "80 pairs in groups of 64", "79 pairs in groups of 64, 1 left out for want of a negative")
    asked = []

    def match(params, image_embeds, text_embeds, text_mask):
        jax.debug.callback(lambda i, t: asked.extend(zip(i.tolist(), t.tolist())),
                           image_embeds[:, 0, 0], text_embeds[:, 0, 0])
        return jnp.zeros((len(image_embeds), 2))

    evaluate(build("matching", source, group_size=80), PARAMS, functions | {"match": match})
    jax.effects_barrier()
    negatives = [(image, text) for image, text in asked if image != text]
    assert len(set(negatives)) > 70
    assert not [(i, t) for i, t in negatives if max(i, t) < 3 or t == 3]

    with pytest.raises(UserError, match="finds no negatives"):
        build("matching", source, max_images=3)
