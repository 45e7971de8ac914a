"""Caption or foil: what is compared, by kind, and of groups of two."""

import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.data.sources.base import Source, pairs
from albef_jax.errors import UserError
from albef_jax.evaluators.contrasts import ContrastsEvaluator

WORDS = ("red", "green", "blue", "small")


class Numbered(Source):
    """Images with a number in their first pixel, and captions of one word, whose place in WORDS is
    that number if it is true; two groups, and an example of none."""

    rows = ((0, 0, 1, "colour"), (1, 1, 0, "colour"), (2, 2, 3, "size or"), (3, 3, 2, "size or"),
            (0, 0, 3, "colour"))
    fields = pairs() | {"foil": {}, "kind": {}, "group": {}}
    fingerprint = "numbered"

    def __len__(self):
        return len(self.rows)

    def name(self, index):
        return str(index)

    def image(self, index):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[0, 0, 0] = self.rows[index][0]
        return pixels

    def text(self, index):
        return [WORDS[self.rows[index][1]]]

    def foil(self, index):
        return WORDS[self.rows[index][2]]

    def kind(self, index):
        return self.rows[index][3]

    def group(self, index):
        return (0, 0, 1, 1, None)[index]

    def image_id(self, index):
        return self.rows[index][0]


class WithoutFoils(Numbered):
    fields = pairs()


@pytest.fixture
def functions(tokenizer):
    """A model whose features compare numbers rightly, and whose matching head may be replaced."""
    ids, _ = tokenizer.encode(list(WORDS), 10)
    number = np.full(tokenizer.vocab_size, -1, np.float32)
    number[ids[:, 1]] = range(len(WORDS))

    def features(value_b1):
        angle = value_b1 / 2
        return value_b1[:, :, None], jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)

    def match(params, image_embeds, text_embeds, text_mask):
        gap = jnp.abs(image_embeds[:, 0, 0] - text_embeds[:, 0, 0])
        return jnp.stack([gap, -gap], -1)

    return dict(encode_image=lambda params, image: features(
        image[:, 0, 0, :1].astype(jnp.float32)), encode_text=lambda params, text_ids, text_mask:
        features(jnp.asarray(number)[text_ids[:, 1:2]]), match=match)


def test_who_knows_is_right_of_every_kind_and_group(build, evaluate, functions):
    evaluator = build("contrasts", Numbered())
    values = evaluate(evaluator, {}, functions)
    assert list(values) == evaluator.names() == [
        "itc", "itm", "itc_colour", "itm_colour", "itc_size_or", "itm_size_or", "itc_text_of_two",
        "itm_text_of_two", "itc_image_of_two", "itm_image_of_two", "itc_both_of_two",
        "itm_both_of_two"]
    assert set(values.values()) == {100.0}
    table = ContrastsEvaluator.table(values)
    assert [row for row, _ in table.rows][:3] == ["all", "colour", "size or"]


def test_who_reads_the_text_alone_is_right_of_half_and_of_no_group(build, evaluate, functions):
    """Likes larger numbers, whatever the image."""
    def match(params, image_embeds, text_embeds, text_mask):
        return jnp.stack([-text_embeds[:, 0, 0], text_embeds[:, 0, 0]], -1)

    values = evaluate(build("contrasts", Numbered()), {}, functions | {"match": match})
    assert values["itm"] == 40.0 and values["itm_size_or"] == 50.0
    assert values["itm_text_of_two"] == values["itm_image_of_two"] == values[
        "itm_both_of_two"] == 0.0
    assert values["itc"] == 100.0


def test_one_right_image_of_two_is_none(build, evaluate, functions):
    """Equal scores everywhere but one: the captions of image 0 are told, no others."""
    def match(params, image_embeds, text_embeds, text_mask):
        hit = (image_embeds[:, 0, 0] == 0) & (text_embeds[:, 0, 0] == 0)
        return jnp.stack([jnp.zeros_like(hit, jnp.float32), hit.astype(jnp.float32)], -1)

    values = evaluate(build("contrasts", Numbered()), {}, functions | {"match": match})
    assert values["itm"] == 40.0 and values["itm_text_of_two"] == 0.0
    assert values["itm_colour"] == pytest.approx(200 / 3) and values["itm_size_or"] == 0.0


def test_a_source_without_foils_is_refused(build):
    with pytest.raises(UserError, match="needs a source whose captions have foils, such as"):
        build("contrasts", WithoutFoils())
