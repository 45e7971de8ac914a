"""Mixtures: shares, passes, order, resume, ids, and the sentence for every mistake."""

import json
from collections import Counter

import numpy as np
import pytest

from albef_jax.data.fields import check_fields
from albef_jax.data.fields.label import LabelField
from albef_jax.data.sources import Source, make_source
from albef_jax.data.sources.base import pairs
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError
from strangers import SHAPE, SoundField, Sounds

SMALL, LARGE = 10, 50
BATCH = 8


def mixture(*weights, sizes=(SMALL, LARGE)):
    parts = [
        dict(source=dict(kind="synthetic", size=size), weight=weight)
        for size, weight in zip(sizes, weights)
    ]
    return make_source(dict(kind="mixture", parts=tuple(parts)))


def of(*sources):
    """A mixture of sources in equal shares."""
    return make_source(dict(kind="mixture", parts=[
        dict(source=source, weight=1) for source in sources]))


def shown(source, epochs, rows=56, seed=0) -> list[tuple[int, int]]:
    """(example, pass) of all rows of some epochs."""
    orders = [source.order(seed, epoch, rows) for epoch in range(epochs)]
    return [pair for indices, passes in orders for pair in zip(indices.tolist(), passes.tolist())]


def test_is_the_parts_one_after_the_other():
    source, small, large = mixture(1, 1), *(
        make_source(dict(kind="synthetic", size=size)) for size in (SMALL, LARGE)
    )
    assert len(source) == SMALL + LARGE
    for index, part, local in ((0, small, 0), (9, small, 9), (10, large, 0), (59, large, 49)):
        assert source.name(index) == part.name(local)
        assert source.get(index, "text") == part.text(local)
        np.testing.assert_array_equal(source.get(index, "image"), part.image(local))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 2), (1e-3, 0.02)])
@pytest.mark.parametrize("rows", [40, 56, 60])
def test_every_epoch_holds_the_shares(weights, rows):
    source = mixture(*weights)
    wanted = rows * weights[0] / sum(weights)
    for epoch in range(4):
        is_small = source.order(0, epoch, rows)[0] < SMALL
        assert len(is_small) == rows and abs(is_small.sum() - wanted) < 1
        so_far = np.cumsum(is_small)  # any stretch of it as well
        assert np.all(np.abs(so_far - wanted / rows * np.arange(1, rows + 1)) <= 1)


def test_three_shares_are_rounded_to_the_length_of_the_epoch():
    source = mixture(1, 1, 1, sizes=(20, 20, 20))
    part = source.order(0, 0, 56)[0] // 20
    assert sorted(Counter(part.tolist()).values()) == [18, 19, 19]


@pytest.mark.parametrize("weights", [(1, 1), (0.05, 1), (1, 0.05)])
def test_each_example_of_a_part_is_shown_once_per_pass(weights):
    source = mixture(*weights)
    for first, size in ((0, SMALL), (SMALL, LARGE)):
        rows = [pair for pair in shown(source, 40) if first <= pair[0] < first + size]
        passes, rest = divmod(len(rows), size)
        assert passes >= 1
        for number in range(passes):
            one_pass = rows[number * size : (number + 1) * size]
            assert {index for index, _ in one_pass} == set(range(first, first + size))
            assert {seen for _, seen in one_pass} == {number}
        assert len({index for index, _ in rows[len(rows) - rest :]}) == rest


def test_no_example_looks_the_same_twice(make_pipeline, data_config):
    """An example that comes back within the epoch is cropped anew."""
    data_config.randaugment = (0, 0)  # two operations can turn any crop white
    pipeline = make_pipeline(mixture(20, 1), BATCH)
    seen = {}
    for step in range(pipeline.steps_per_epoch):
        batch = pipeline.batch(step)
        for index, image in zip(pipeline.examples(step)[0].tolist(), batch["image"]):
            seen.setdefault(index, []).append(image.tobytes())
    assert max(len(views) for views in seen.values()) > 4
    assert all(len(set(views)) == len(views) for views in seen.values())


def test_order_follows_seed_and_epoch_and_parts_differ():
    source = mixture(1, 1, sizes=(30, 30))
    orders = [source.order(seed, epoch, 60)[0] for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    np.testing.assert_array_equal(orders[0], orders[3])
    assert len({order.tobytes() for order in orders}) == 3
    assert not np.array_equal(orders[0][orders[0] < 30], orders[0][orders[0] >= 30] - 30)


def test_resumes_from_the_step_alone(make_pipeline):
    source = mixture(2, 1)
    straight = list(make_pipeline(source, BATCH).iterate(0, 20))
    for start in (1, 7, 13):  # 7 steps per epoch
        resumed = list(make_pipeline(mixture(2, 1), BATCH).iterate(start, 20))
        for one, other in zip(straight[start:], resumed, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_hosts_share_a_batch(make_pipeline):
    source = mixture(2, 1)
    whole = make_pipeline(source, BATCH).batch(9)
    rows = np.arange(len(whole["image_id"]))
    halves = [make_pipeline(source, BATCH, rows=part).batch(9) for part in np.split(rows, 2)]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([h[name] for h in halves]))


def test_images_of_different_parts_differ(tmp_path):
    rows = [{"image": name, "caption": name} for name in ("a", "b", "a", "c")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    part = dict(source=f"json:{tmp_path / 'rows.json'}", weight=1)
    source = make_source(dict(kind="mixture", parts=(part, part)))
    assert [source.image_id(i) for i in range(8)] == [0, 1, 0, 2, 3, 4, 3, 5]


def test_captions_describe_images_of_their_own_part_only(tmp_path):
    rows = [{"image": name, "caption": name} for name in ("a", "b", "a")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    part = dict(source=f"json:{tmp_path / 'rows.json'}", weight=1)
    source = make_source(dict(kind="mixture", parts=(part, part)))
    true = [[source.describes(owner, 0, index) for index in range(6)] for owner in (0, 4)]
    assert true[0] == [True, False, True, False, False, False]
    assert true[1] == [False, False, False, False, True, False]


def test_mixture_of_mixtures():
    inner = dict(
        kind="mixture",
        parts=[dict(source=dict(kind="synthetic", size=n), weight=1) for n in (10, 20)],
    )
    parts = [
        dict(source=inner, weight=1),
        dict(source=dict(kind="synthetic", size=30), weight=1),
    ]
    source = make_source(dict(kind="mixture", parts=parts))
    pairs = shown(source, 6, rows=60)
    assert len(set(pairs)) == len(pairs)  # no example twice in the same pass
    counts = Counter(np.digitize([index for index, _ in pairs], (10, 30)).tolist())
    assert counts == {0: 90, 1: 90, 2: 180}


class TwoImages(Source):
    """Statements about two images, and whether they are true."""

    fingerprint, fields = "two", pairs("question", views=2) | {
        "label": {"class_names": ("false", "true")}}

    def __init__(self, shade):
        self._shade = shade

    def __len__(self):
        return 9

    def name(self, index):
        return f"{self._shade} {index}"

    def image(self, index):
        return [np.full((8, 8, 3), self._shade + view, np.uint8) for view in range(2)]

    def image_id(self, index):
        return index

    def text(self, index):
        return [f"<person> {self._shade}"]

    def label(self, index):
        return int(self._shade > 100)


def test_views_labels_and_cleaning_of_the_parts_reach_a_batch(
        make_pipeline, make_fields, data_config):
    data_config.update(flip=0.0, randaugment=(0, 0), max_words=2)
    source = of(TwoImages(10), TwoImages(200))
    assert source.fields == TwoImages.fields
    fields = make_fields(size=8, views=2) | {"label": LabelField(2)}
    pipeline = make_pipeline(source, 6, fields=fields)
    batch = pipeline.batch(0)
    assert batch["image"].shape == (6, 2, 8, 8, 3) and batch["label"].sum() == 3
    shades = np.where(batch["label"], 200, 10)[:, None] + [0, 1]
    np.testing.assert_array_equal(batch["image"][:, :, 0, 0, 0], shades)
    assert fields["text"].clean("The <person>  runs", train=True) == "the <person>"  # no caption
    assert len(set(batch["image_id"].tolist())) == 6


def test_a_field_of_a_strangers_source(make_pipeline):
    one, other = Sounds(5), Sounds(7, broken=(6,))
    source = of(one, other)
    assert source.fields == one.fields and source.name(6) == "sound 1"
    np.testing.assert_array_equal(source.get(10, "sound"), other.sound(5))
    assert [source.get(i, "label") for i in (4, 5, 6)] == [0, 0, 1]
    pipeline = make_pipeline(source, 12, fields={"sound": SoundField()})
    batch = pipeline.batch(0)
    assert batch["sound"].shape == (12, *SHAPE) and pipeline.broken.names == {"sound 6": "missing"}


def test_a_tokenizer_knows_the_words_of_all_parts(data_config, tmp_path):
    rows = [{"image": "a.jpg", "question": "Which colour?", "answer": [colour]}
            for colour in ("violet", "ochre")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data_config.vocab_size = 400
    tokenizer = make_tokenizer(data_config, of(Sounds(9), make_source(f"vqa:{tmp_path}/rows.json")))
    assert {"violet", "ochre", "colour", "purr", "roar", "number"} <= tokenizer.vocabulary.keys()


def test_only_what_all_parts_have_is_a_field():
    class Silent(Sounds):
        def __init__(self):
            super().__init__()
            del self.fields["sound"], self.fields["answers"]

    for source in (of(Sounds(), Silent()), of(Silent(), Sounds())):
        assert source.fields.keys() == {"text", "label"}
        with pytest.raises(UserError, match="data.source has no field 'sound', which the task asks "
                                            "for; it has text, label"):
            check_fields({"sound": SoundField()}, source)


@pytest.mark.parametrize("one, other, difference", [
    (Sounds(rate=8000), Sounds(rate=16000), "'rate' of their field 'sound' is 8000 and 16000"),
    (Sounds(names=("low", "high")), Sounds(names=("quiet", "loud")),
     "'class_names' of their field 'label' is ('low', 'high') and ('quiet', 'loud')"),
    (TwoImages(1), dict(kind="synthetic", size=9), "'views' of their field 'image' is 2 and 1"),
    (dict(kind="synthetic", size=9), Sounds(),
     "'cleaning' of their field 'text' is 'caption' and 'question'"),
])
def test_parts_that_do_not_fit_each_other(one, other, difference):
    with pytest.raises(UserError) as error:
        of(one, one, other)
    assert str(error.value) == ("Parts 0 and 2 of the mixture (counted from 0) do not fit each "
                                f"other: {difference}; mix sources of the same task.")


def test_parts_with_nothing_in_common():
    class Other(Sounds):
        def __init__(self):
            super().__init__()
            self.fields = {"smell": {}}

    with pytest.raises(UserError, match="no field in common; mix sources of the same task"):
        of(Sounds(), Other())


def test_fingerprint_follows_parts_and_shares():
    sources = mixture(1, 3), mixture(2, 6), mixture(3, 1), mixture(1, 3, sizes=(SMALL, 51))
    prints = [source.fingerprint for source in sources]
    assert prints[0] == prints[1] and len(set(prints)) == 3


PART = dict(source=dict(kind="synthetic", size=10), weight=1.0)


@pytest.mark.parametrize(
    "parts, words",
    [
        ((), ["no parts", "give it some"]),
        ((PART, {**PART, "weight": 0}), ["Part 1", "weight 0", "positive number"]),
        (({**PART, "weight": -1.0},), ["Part 0", "weight -1.0"]),
        (({**PART, "weight": float("nan")},), ["weight nan"]),
        (({**PART, "weight": float("inf")},), ["weight inf"]),
        (({**PART, "weight": "2"},), ["weight '2'"]),
        (({**PART, "weight": True},), ["weight True"]),
        (({"source": "scenes:demo"},), ["must be dict(source=..., weight=...)"]),
        (("scenes:demo",), ["must be dict(source=..., weight=...)", "'scenes:demo'"]),
        ((PART, {**PART, "weight": 0.01}), ["Part 1", "less than two", "raise its weight"]),
        (({**PART, "source": dict(kind="synthetic", size=0)},), ["size=0; it must be"]),
        (({**PART, "source": "film:x"},), ["'film:x' is no data source", "json:FILE"]),
    ],
)
def test_mistakes(parts, words):
    with pytest.raises(UserError) as error:
        make_source(dict(kind="mixture", parts=parts))
    assert all(word in str(error.value) for word in words), error.value
