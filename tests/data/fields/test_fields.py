"""What all fields promise: arrays of one shape and type, facts that fit, broken values told."""

import re

import jax
import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.fields import check_fields, open_fields
from albef_jax.data.fields.answers import AnswersField
from albef_jax.data.fields.image import ImageField
from albef_jax.data.fields.label import LabelField
from albef_jax.data.fields.number import NumberField
from albef_jax.data.fields.regions import DetectedRegionsField, GlobalFeatureField, RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.text import TextField
from albef_jax.data.fields.title import TitleField
from albef_jax.data.sources.regions import Regions
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from strangers import SoundField, Sounds

IMAGE = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
ANSWERS = [("yes", 0.6), ("it is a long one", 0.3), ("no", 0.1)]
WORDS = ["yes no it is a long red one what"] * 3
MODEL = default_config().model
REGIONS = Regions(np.ones((2, 4)), np.array([[0, 0, 8, 4], [2, 1, 4, 3.0]]), (8, 4))


def products(data):
    """The block with small sizes for the fields of products."""
    data = data.copy_and_resolve_references().unlock()
    data.update(table_length=9, regions_length=3, regions_width=4, video_length=5, video_width=3,
                audio_length=4, audio_width=6, audio_axis="mel", audio_pool=2, global_width=2)
    return data


# Name -> how it is made of a `data` block, the facts of a source, and a raw value.
FIELDS = {
    "image": (lambda data: ImageField(data, 8), {"views": 1}, IMAGE),
    "images": (lambda data: ImageField(data, 8, views=2), {"views": 2}, [IMAGE, IMAGE[::-1]]),
    "text": (lambda data: TextField(data, MODEL), {"cleaning": "question"}, ["what is red?"]),
    "sentence": (lambda data: TextField(data, MODEL, "sentence"), {}, ["a", "A long one."]),
    "title": (lambda data: TitleField(data, MODEL), {"cleaning": "none"}, ["What is it?"]),
    "no title": (lambda data: TitleField(data, MODEL), {"cleaning": "none"}, []),
    "table": (lambda data: TableField(products(data), MODEL), {}, [("red", "yes"), ("one", "no")]),
    "no table": (lambda data: TableField(products(data), MODEL), {}, None),
    "regions": (lambda data: RegionsField(products(data)), {"width": 4}, REGIONS),
    "detected": (lambda data: DetectedRegionsField(products(data), 5), {"width": 4},
                 REGIONS._replace(classes=np.array([4, 0]))),
    "global_feature": (lambda data: GlobalFeatureField(products(data)), {}, np.ones(2)),
    "no regions": (lambda data: RegionsField(products(data)), {}, None),
    "video": (lambda data: VideoField(products(data)), {"width": 3}, np.ones((7, 3))),
    "audio": (lambda data: AudioField(products(data)), {}, np.ones((2, 6), np.float16)),
    "answers": (lambda data: AnswersField(data, MODEL), {}, ANSWERS),
    "label": (lambda data: LabelField(3), {"class_names": ("a", "b", "c")}, 2),
    "image_id": (lambda data: NumberField("image_id"), {}, 77),
    "sound": (lambda data: SoundField(), {"rate": 8000}, np.ones((4, 3))),
}


@pytest.fixture(params=FIELDS)
def field(request, data_config):
    """An open field."""
    make, facts, _ = FIELDS[request.param]
    field = make(data_config)
    field.check()
    field.check_facts(facts, "here")
    field.open(facts, train_tokenizer(WORDS, 100))
    field.raw = FIELDS[request.param][2]
    return field


def generators(n, start=0):
    return [np.random.default_rng(start + number) for number in range(n)]


def kinds(arrays, n):
    """Name -> shape and type of one of n examples."""
    assert all(type(array) is np.ndarray and len(array) == n for array in arrays.values())
    return {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}


def test_what_is_loaded_and_noise_are_as_the_spec_says(field):
    spec = {name: (one.shape, one.dtype) for name, one in field.spec().items()}
    assert all(isinstance(one, jax.ShapeDtypeStruct) for one in field.spec().values())
    for n in (1, 3):
        trained, problems = field.load([lambda: field.raw] * n, generators(n), True)
        assert kinds(trained, n) == spec and problems == [None] * n
        evaluated, problems = field.load([lambda: field.raw] * n, [None] * n, False)
        assert kinds(evaluated, n) == spec and problems == [None] * n
        assert kinds(field.noise(np.random.default_rng(0), n), n) == spec
    for name, array in field.trimmed(evaluated).items():
        assert len(array) == 3 and array.dtype == spec[name][1]


def test_draws_come_from_the_generators_alone(field):
    one, again, parallel = (
        field.load([lambda: field.raw] * 6, generators(6), True, parallel_map)[0]
        for parallel_map in (map, map, lambda f, *rows: [*map(f, *rows)]))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        np.testing.assert_array_equal(one[name], parallel[name])


def test_a_value_that_cannot_be_read_harms_no_other(field):
    def gone():
        raise FileNotFoundError("nowhere")

    values = [lambda: field.raw, gone, lambda: field.raw]
    arrays, problems = field.load(values, generators(3), True)
    whole, _ = field.load([lambda: field.raw] * 3, generators(3), True)
    assert problems == [None, "missing", None]
    for name in whole:
        np.testing.assert_array_equal(arrays[name][[0, 2]], whole[name][[0, 2]])


def test_nothing_at_all_can_be_read(field):
    def damaged():
        raise OSError(5, "Input/output error")

    arrays, problems = field.load([damaged], generators(1), True)
    assert kinds(arrays, 1) == {name: (one.shape, one.dtype) for name, one in field.spec().items()}
    assert problems == ["Input/output error"]


def test_texts_of_evaluation_may_be_longer_and_are_cut_to_the_longest(data_config):
    data_config.update(text_length=4, max_words=2, eval_text_length=9, eval_max_words=6)
    field = TextField(data_config, MODEL)
    tokenizer = train_tokenizer(WORDS, 100)
    field.open({"cleaning": "caption"}, tokenizer)
    values = [lambda: ["It is a long, long one!", "never"], lambda: ["it is a"]]
    trained, _ = field.load(values, [np.random.default_rng(0)] * 2, True)
    evaluated, _ = field.load(values, [None] * 2, False)
    assert trained["text_ids"].shape == (2, 4) and evaluated["text_ids"].shape == (2, 9)
    assert trained["text_mask"].sum() <= 6
    assert tokenizer.decode(evaluated["text_ids"][0]) == "it is a long long one"
    cut = field.trimmed(evaluated)
    assert cut["text_ids"].shape == cut["text_mask"].shape == (2, 7)
    np.testing.assert_array_equal(cut["text_mask"].sum(1), evaluated["text_mask"].sum(1))


def test_one_of_several_texts_is_drawn(data_config):
    field = TextField(data_config, MODEL)
    field.open({}, train_tokenizer(WORDS, 100))
    arrays, _ = field.load([lambda: ["yes", "no"]] * 200, generators(200), True)
    first = (arrays["text_ids"] == arrays["text_ids"][0]).all(1)
    assert 70 < first.sum() < 130
    evaluated, _ = field.load([lambda: ["yes", "no"]] * 5, [None] * 5, False)
    assert len(np.unique(evaluated["text_ids"], axis=0)) == 1


def test_the_heaviest_answers_are_taken_and_long_ones_told(data_config):
    data_config.update(answer_length=4, max_answers=3)
    field, tokenizer = AnswersField(data_config, MODEL), train_tokenizer(WORDS, 100)
    field.open({}, tokenizer)
    many = [("red", 0.1), ("no", 0.5), ("it is a long one", 0.2), ("what", 0.15), ("yes", 0.05)]
    arrays, _ = field.load([lambda: many, lambda: [("yes", 1.0)]], [None] * 2, False)
    np.testing.assert_allclose(arrays["answer_weight"], [[0.5, 0, 0.15], [1, 0, 0]])
    texts = [[tokenizer.decode(ids) for ids in row] for row in arrays["answer_ids"]]
    assert texts[0][0] == "no" and texts[0][2] == "what" and texts[1] == ["yes", "", ""]
    free = arrays["answer_ids"][1, 1], arrays["answer_mask"][1, 1]
    assert [row.tolist() for row in free] == [[tokenizer.cls_id] + [tokenizer.pad_id] * 3,
                                              [1, 0, 0, 0]]
    assert field.notes() == ["1 answers are longer than data.answer_length and were left out: it "
                             "is a long one"]


def test_noise_of_texts_and_labels_is_in_range(data_config):
    rng = np.random.default_rng(0)
    words = default_config().model.copy_and_resolve_references()
    words.update(vocab_size=50, pad_id=7, cls_id=9)
    noise = TextField(data_config, words).noise(rng, 500)
    assert (noise["text_ids"][:, 0] == 9).all() and noise["text_ids"].max() == 49
    assert (noise["text_ids"][noise["text_mask"] == 0] == 7).all()
    assert set(LabelField(3).noise(rng, 200)["label"]) == {0, 1, 2}
    answers = AnswersField(data_config, words).noise(rng, 20)
    np.testing.assert_allclose(answers["answer_weight"].sum(1), 1, atol=1e-6)
    assert len(set(NumberField("image_id").noise(rng, 20)["image_id"])) == 20


@pytest.mark.parametrize("make, facts, sentence", [
    (lambda data: ImageField(data, 8), {"views": 2},
     "The task looks at 1 image(s) per example, but data.source has 2; give it a source"),
    (lambda data: ImageField(data, 8, views=2), {}, "at 2 image(s) per example, but data.source "
                                                    "has 1; give"),
    (lambda data: LabelField(3), {"class_names": ("no", "yes")},
     "The task tells 3 classes apart, but data.source has 2 (no, yes); give it a source"),
    (lambda data: LabelField(2), {}, "tells 2 classes apart, but data.source has 0; give"),
])
def test_facts_that_do_not_fit(data_config, make, facts, sentence):
    source = Sounds()
    source.fields = {"it": facts}
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_fields({"it": make(data_config)}, source)
    with pytest.raises(UserError, match="but the other one has"):
        open_fields({"it": make(data_config)}, source, None, "the other one")


@pytest.mark.parametrize("change, sentence", [
    (dict(engine="dali"), "data.engine='dali' is unknown; use 'auto', 'tf' or 'pillow'."),
    (dict(crop_scale=(0.5, 0.2)), "data.crop_scale is (0.5, 0.2); give the least and"),
    (dict(crop_scale=(0.5,)), "data.crop_scale is (0.5,)"),
    (dict(crop_scale=(0.0, 1.0)), "data.crop_scale is (0.0, 1.0)"),
    (dict(randaugment=(2, 7, 1)), "data.randaugment is (2, 7, 1); give the number of"),
])
def test_settings_of_images(data_config, change, sentence):
    ImageField(data_config, 8).check()
    data_config.update(change)
    with pytest.raises(UserError, match=re.escape(sentence)):
        ImageField(data_config, 8).check()
