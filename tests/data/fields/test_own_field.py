"""A field and a source of one's own go through pipeline and evaluation as ours do."""

import jax
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.eval_sets import EvalRows
from albef_jax.data.fields import Field
from albef_jax.data.fields.label import LabelField
from albef_jax.data.fields.text import TextField
from albef_jax.data.pipeline import example_rng
from albef_jax.data.sources import make_source
from albef_jax.data.text import make_tokenizer, train_tokenizer
from albef_jax.errors import UserError
import strangers
from strangers import SHAPE, SoundField, Sounds


@pytest.fixture
def sound_fields(data_config):
    return {"sound": SoundField(), "label": LabelField(2),
            "text": TextField(data_config, default_config().model)}


def numbers(batch):
    """The examples of a batch: a sound is their number, and less than a half more."""
    return batch["sound"].astype(int)[:, 0, 0]


def test_batches_of_sounds(make_pipeline, sound_fields):
    pipeline = make_pipeline(Sounds(12), 4, seed=5, fields=sound_fields)
    batch = pipeline.batch(1)
    assert list(batch) == ["sound", "label", "text_ids", "text_mask"]
    indices, passes = pipeline.examples(1)
    np.testing.assert_array_equal(numbers(batch), indices)
    np.testing.assert_array_equal(batch["label"], indices % 2)
    drawn = example_rng(5, passes[2], indices[2], "sound").uniform(0, 0.5)
    np.testing.assert_allclose(batch["sound"][2], indices[2] + drawn, atol=1e-6)
    for one, other in zip(pipeline.iterate(1, 3), (batch, pipeline.batch(2)), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_broken_one_is_counted_named_and_replaced_in_all_fields(make_pipeline, sound_fields):
    pipeline = make_pipeline(Sounds(12, broken=(3, 4)), 12, fields=sound_fields)
    batch = pipeline.batch(0)
    indices = pipeline.examples(0)[0]
    wanted = [{3: 5, 4: 5}.get(index, index) for index in indices.tolist()]
    assert numbers(batch).tolist() == wanted
    np.testing.assert_array_equal(batch["label"], np.array(wanted) % 2)
    row = wanted.index(5), len(wanted) - 1 - wanted[::-1].index(5)
    np.testing.assert_array_equal(batch["text_ids"][row[0]], batch["text_ids"][row[1]])
    assert pipeline.broken.names == {"sound 3": "missing", "sound 4": "missing"}
    assert pipeline.broken.count == 3  # 4 was met again as the next one after 3
    assert pipeline.notes()[0].startswith("3 of 15 reads failed and were replaced: sound ")


def test_two_fields_broken_in_one_row_are_one_broken_example(make_pipeline, sound_fields):
    class Both(Sounds):
        def text(self, index):
            if index in (3, 7):
                raise OSError("no text")
            return super().text(index)

    tokenizer = train_tokenizer(["what does it say"], 60)
    pipeline = make_pipeline(Both(12, broken=(3,)), 12, 0, tokenizer, sound_fields)
    batch = pipeline.batch(0)
    assert pipeline.broken.names == {"sound 3": "missing", "sound 7": "no text"}
    assert pipeline.broken.count == 2
    assert sorted(numbers(batch)) == sorted([0, 1, 2, 4, 4, 5, 6, 8, 8, 9, 10, 11])


def test_an_array_of_another_shape_is_a_broken_example(make_pipeline, sound_fields):
    """numpy would stretch it in silence."""
    class Narrow(Sounds):
        def sound(self, index):
            return super().sound(index)[: 1 if index == 2 else None]

    pipeline = make_pipeline(Narrow(12), 12, fields=sound_fields)
    assert 2 not in numbers(pipeline.batch(0))
    assert pipeline.broken.names == {"sound 2": "sound of shape (1, 3), not (4, 3)"}


def test_a_damaged_value_is_a_broken_example(make_pipeline, sound_fields):
    class Negative(Sounds):
        def sound(self, index):
            return super().sound(index) * (-1 if index == 2 else 1)

    pipeline = make_pipeline(Negative(12), 12, fields=sound_fields)
    pipeline.batch(0)
    assert pipeline.broken.names == {"sound 2": "it is negative"}


def test_too_many_broken_ones_stop_the_run(make_pipeline, sound_fields):
    pipeline = make_pipeline(Sounds(12, broken=(1, 2, 3, 4)), 12, fields=sound_fields)
    with pytest.raises(UserError, match=r"4 of 12 examples .*sound 2 \(missing\)") as error:
        pipeline.batch(0)
    assert "\n" not in str(error.value)


def test_evaluation_reads_without_draws_and_takes_no_broken_one(data_config, sound_fields):
    tokenizer = make_tokenizer(data_config, Sounds(10))
    rows = EvalRows(Sounds(10), sound_fields, tokenizer, data_config, limit=7)
    one, other = rows.batches(4)
    assert len(rows) == 7 and other["_mask"].tolist() == [1, 1, 1, 0]
    np.testing.assert_array_equal(one["sound"][3], np.full(SHAPE, 3))
    assert other["index"].tolist()[:3] == [4, 5, 6] == numbers(other).tolist()[:3]
    assert rows.text(2) == "what  does <person> number 2 say"
    np.testing.assert_array_equal(rows.some([6, 2])["label"], [0, 0])
    with pytest.raises(UserError, match=r"example sound 5 cannot be read \(missing\); mend it"):
        EvalRows(Sounds(10, broken=(5,)), sound_fields, tokenizer, data_config)


def test_heavy_fields_are_read_when_asked(data_config):
    class Heavy(SoundField):
        light = False

    rows = EvalRows(Sounds(10, broken=(8,)), {"sound": Heavy()}, None, data_config)
    assert rows.light == {} and numbers(rows.some([3, 1])).tolist() == [3, 1]
    with pytest.raises(UserError, match="example sound 8 cannot be read"):
        list(rows.batches(5))


def test_a_source_is_named_by_its_file():
    source = make_source(dict(kind=f"{strangers.__file__}:Sounds", size=5))
    assert len(source) == 5 and source.get(4, "answers") == [("purr", 0.75), ("roar", 0.25)]
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        make_source(dict(kind=f"{strangers.__file__}:Sounds", colour=1))
    with pytest.raises(UserError, match="no class SoundField derived from .*Source"):
        make_source(dict(kind=f"{strangers.__file__}:SoundField"))


def test_noise_of_whole_numbers_is_zero():
    class Counts(Field):
        def spec(self):
            return {"counts": jax.ShapeDtypeStruct((2,), np.int32)}

    noise = Counts().noise(np.random.default_rng(0), 3)["counts"]
    assert noise.dtype == np.int32 and not noise.any()
    sounds = SoundField().noise(np.random.default_rng(0), 500)["sound"]
    assert abs(sounds.mean()) < 0.1 and 0.9 < sounds.std() < 1.1
