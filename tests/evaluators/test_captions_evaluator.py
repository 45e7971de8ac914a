"""Written captions and their truth."""

import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import make_evaluator

LENGTH = 19


@pytest.fixture
def scenes(tmp_path):
    return dict(kind="captions", source=dict(kind="scenes", split="heldout", size=6,
                                             data_dir=str(tmp_path)))


@pytest.fixture
def made(scenes):
    """The evaluator, its source and tokenizer."""
    config, source = default_config("vqa"), make_source(scenes)
    config.model.update(image_size=96, patch_size=24)
    config.data.update(engine="pillow", workers=1, answer_length=LENGTH, vocab_size=400)
    tokenizer = make_tokenizer(config.data, source)
    block = dict(kind="captions", source=source, batch_size=4, beams=2)
    return make_evaluator("held", block, config, tokenizer), source, tokenizer


def writing(tokenizer, texts):
    """The functions of a model that writes these texts, of the six images in order."""
    ids_nl, _ = tokenizer.encode(texts, LENGTH, sep=True)
    ids_nl = np.pad(ids_nl, ((0, 0), (0, LENGTH - ids_nl.shape[1])),
                    constant_values=tokenizer.pad_id)

    def encode(params, image, text_ids, text_mask):
        # The image that it is: its pixels are the same as those of one of the six.
        return jnp.argmin(jnp.abs(image[:, None].astype(jnp.float32) - params["images"][None]
                                  ).sum((2, 3, 4)), axis=1)

    def generate(params, states, mask, end_id, length, beams):
        assert (length, beams, end_id) == (LENGTH, 2, tokenizer.sep_id)
        best_bl = jnp.asarray(ids_nl)[states]
        other_bl = jnp.full_like(best_bl, tokenizer.pad_id)
        return (jnp.stack([best_bl, other_bl], 1),
                jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.25])), (len(states), 2)))

    return dict(encode=encode, generate=generate)


def test_truth_falsehood_and_nonsense_of_each_image_once(made, evaluate):
    evaluator, source, tokenizer = made
    right = [source.get(5 * i, "answers")[0][0] for i in range(6)]
    texts = [*right[:3], right[4], "a star a", right[5]]  # the fourth is that of the fifth image
    params = {"images": np.stack([source.get(5 * i, "image")
                                  for i in range(6)]).astype(np.float32)}
    values = evaluate(evaluator, params, writing(tokenizer, texts))
    expected = [source.truth(5 * i, text) for i, text in enumerate(texts)]
    assert expected[:3] == [True] * 3 and expected[4:] == [None, True]
    assert values["true"] == pytest.approx(100 * expected.count(True) / 6)
    assert values["nonsense"] == pytest.approx(100 / 6)
    assert values["true"] + values["false"] + values["nonsense"] == pytest.approx(100)
    others = [source.truth(5 * ((i + 1) % 6), text) for i, text in enumerate(texts)]
    assert others[3] is True
    assert values["true_of_another"] == pytest.approx(100 * others.count(True) / 6)


def test_a_source_that_cannot_judge_is_refused(make_source_block):
    config = default_config("vqa")
    block = dict(kind="captions", source=dict(kind="captions", source=make_source_block(3)))
    with pytest.raises(UserError, match="cannot judge what is written .ArraySource does not know"):
        make_evaluator("held", block, config, None)
