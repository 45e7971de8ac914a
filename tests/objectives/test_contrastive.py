"""ITC: identities with InfoNCE and the paper's equations, targets, the bound on information.

The references are written in float64 numpy; float32 leaves errors of a few 1e-7 relative.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.objectives.contrastive import (
    image_positives,
    itc_loss,
    itc_targets,
    mi_bound,
    pair_positives,
    similarity_logits,
)

B, Q, E, TEMPERATURE = 6, 10, 8, 0.07
RTOL = 2e-6


def unit(rng, rows):
    x = rng.normal(size=(rows, E))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    names = ("image", "text", "image_m", "text_m", "image_queue", "text_queue")
    return {name: unit(rng, Q if "queue" in name else B) for name in names}


def logits_of(f):
    """Online i2t and t2i, then the teacher's."""
    return (similarity_logits(f["image"], f["text_m"], f["text_queue"], TEMPERATURE),
            similarity_logits(f["text"], f["image_m"], f["image_queue"], TEMPERATURE),
            similarity_logits(f["image_m"], f["text_m"], f["text_queue"], TEMPERATURE),
            similarity_logits(f["text_m"], f["image_m"], f["image_queue"], TEMPERATURE))


def loss_of(f, alpha):
    i2t, t2i, i2t_m, t2i_m = logits_of(f)
    truth = pair_positives(B, Q)
    return itc_loss(i2t, t2i, itc_targets(truth, i2t_m, alpha), itc_targets(truth, t2i_m, alpha))


def info_nce(queries, keys):
    """Mean of -log(exp(s_ii) / sum_j exp(s_ij)) in float64, row by row."""
    queries, keys = np.float64(queries), np.float64(keys)
    total = 0.0
    for i, query in enumerate(queries):
        scores = np.exp([query @ key / TEMPERATURE for key in keys])
        total -= np.log(scores[i] / scores.sum())
    return total / len(queries)


def probabilities(logits):
    x = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_one_hot_itc_is_symmetric_info_nce(features):
    """ALBEF.md J02: the candidates are the batch's momentum features and the queue."""
    f = features
    i2t = info_nce(f["image"], np.concatenate([f["text_m"], f["text_queue"]]))
    t2i = info_nce(f["text"], np.concatenate([f["image_m"], f["image_queue"]]))
    np.testing.assert_allclose(loss_of(f, 0.0), (i2t + t2i) / 2, rtol=RTOL)


def kl_form(f, alpha):
    """Eq. 6: (1 - alpha) L_itc + alpha/2 E[KL(q_i2t || p_i2t) + KL(q_t2i || p_t2i)]."""
    i2t, t2i, i2t_m, t2i_m = logits_of(f)
    divergence = sum(
        jnp.mean(jnp.sum(jax.nn.softmax(m) * (jax.nn.log_softmax(m) - jax.nn.log_softmax(x)), -1))
        for x, m in ((i2t, i2t_m), (t2i, t2i_m)))
    return (1 - alpha) * loss_of(f, 0.0) + alpha / 2 * divergence


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_soft_cross_entropy_is_equation_6_up_to_the_teachers_entropy(features, alpha):
    """ALBEF.md G11: values differ by alpha times the mean entropy, gradients not at all."""
    *_, i2t_m, t2i_m = logits_of(features)
    entropy = [-np.sum(q * np.log(q), -1).mean() for q in map(probabilities, (i2t_m, t2i_m))]
    np.testing.assert_allclose(
        loss_of(features, alpha), kl_form(features, alpha) + alpha * np.mean(entropy), rtol=RTOL)

    def gradient(form):
        return jax.grad(lambda online: form(features | online, alpha))(
            {name: features[name] for name in ("image", "text")})

    for ours, paper in zip(*(jax.tree.leaves(gradient(form)) for form in (loss_of, kl_form))):
        np.testing.assert_allclose(ours, paper, atol=1e-6 * np.abs(paper).max())


def test_no_gradient_flows_into_targets(features):
    truth = pair_positives(B, Q)
    grad = jax.grad(lambda m: jnp.sum(itc_targets(truth, m, 0.4) ** 2))(logits_of(features)[2])
    np.testing.assert_array_equal(grad, 0.0)


def test_every_positive_has_the_same_share():
    """Captions of one image: rows 0 and 2 and queue entry 1; -1 is an empty entry."""
    positives = image_positives(jnp.array([3, 5, 3, -7]), jnp.array([5, 3, -1]))
    expected = np.array([[1, 0, 1, 0, 0, 1, 0], [0, 1, 0, 0, 1, 0, 0],
                         [1, 0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(positives, expected)
    targets = itc_targets(positives, jnp.zeros((4, 7)), 0.0)
    np.testing.assert_allclose(targets, expected / expected.sum(-1, keepdims=True), rtol=1e-7)
    mixed = itc_targets(positives, jnp.zeros((4, 7)), 0.25)
    np.testing.assert_allclose(mixed[0], np.where(expected[0], 0.25, 0) + 0.25 / 7, rtol=1e-6)


def test_targets_sum_to_one(features):
    for alpha in (0.0, 0.4, 1.0):
        targets = itc_targets(pair_positives(B, Q), logits_of(features)[2], alpha)
        np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)


def test_bound_on_mutual_information(features):
    """log(candidates) minus InfoNCE: at most log(candidates), 0 when nothing is known."""
    f, truth, most = features, pair_positives(B, Q), np.log(B + Q)
    keys = np.concatenate([f["text_m"], f["text_queue"]])
    np.testing.assert_allclose(mi_bound(logits_of(f)[0], truth), most - info_nce(f["image"], keys),
                               rtol=1e-5)
    assert mi_bound(logits_of(f)[0], truth) <= most
    np.testing.assert_allclose(mi_bound(jnp.zeros((B, B + Q)), truth), 0.0, atol=1e-6)
    np.testing.assert_allclose(mi_bound(1e3 * truth, truth), most, rtol=1e-6)
