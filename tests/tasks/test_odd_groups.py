"""Groups in which a loss has nothing to do: it weighs nothing, and every gradient is finite."""

import jax
import jax.numpy as jnp
import numpy as np

from albef_jax.objectives.masking import draw_masking
from albef_jax.tasks.pretrain import PretrainDraws


def test_no_masked_word_and_a_single_image(tiny_run):
    """Group 0 predicts no word: MLM is 0. Group 1 shows one image: only matching pairs count."""
    task, _, state, batch = tiny_run("objective.positives=image")
    groups = jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), batch)
    groups["image_id"] = groups["image_id"].at[1].set(5)
    masking = draw_masking(jax.random.key(0), groups["text_ids"].shape, 100)
    masking = masking._replace(chosen=masking.chosen.at[0].set(False))
    others = jnp.stack([(jnp.arange(8) + 1) % 8] * 2)
    draws = PretrainDraws(masking, others, others)

    @jax.jit
    def run(params):
        def loss(p, group, drawn):
            total, aux = task.loss(p, state.teacher, state.memory, group, jax.random.key(0),
                                   task.schedule(10), drawn)
            return total, (aux.metrics, aux.record["itm"]["logits"])

        return jax.vmap(jax.value_and_grad(loss, has_aux=True), (None, 0, 0))(
            params, groups, draws)

    (totals, (metrics, logits)), grads = run(state.params)
    assert np.isfinite(totals).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert metrics["mlm"][0] == 0.0 and metrics["mlm"][1] > 1.0
    head = grads["text_encoder"]["head"]["bias"]
    np.testing.assert_array_equal(head[0], 0.0)
    assert np.any(head[1])
    matched = -jax.nn.log_softmax(logits[1, 0])[:, 1].mean()
    np.testing.assert_allclose(metrics["itm"][1], matched, rtol=1e-5)
    assert abs(metrics["itm"][0] + jax.nn.log_softmax(logits[0, 0])[:, 1].mean()) > 1e-3
