"""Fields of products: tables, features and boxes as the released loader makes them; bad values."""

from pathlib import Path

import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.fields.regions import RegionsField
from albef_jax.data.fields.sequence import AudioField, VideoField
from albef_jax.data.fields.table import TableField
from albef_jax.data.fields.title import TitleField
from albef_jax.data.sources.regions import Regions
from albef_jax.data.table import parse_table
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from parity_report import Report
from parity_scale_fields import run_fields

GOLDEN = Path(__file__).parents[2] / "golden" / "scale_masking"
MODEL = default_config().model
TOKENIZER = train_tokenizer(["red green colour size of the lamp large"] * 3, 100)


@pytest.fixture
def settings(data_config):
    data_config.update(table_length=8, regions_length=3, regions_width=2, video_length=3,
                       video_width=2, sep=True)
    return data_config


def load(field, *raw):
    field.open({"cleaning": "none"}, TOKENIZER)
    return field.load([lambda value=value: value for value in raw], [None] * len(raw), False)


def test_fields_give_what_the_released_loader_gave(capsys):
    report = Report()
    run_fields(GOLDEN, {}, report)
    assert (report.compared, report.missed) == (27, 0), capsys.readouterr().out


@pytest.mark.parametrize("table, pairs", [
    ("colour#:#red#;#size#:#large", [("colour", "red"), ("size", "large")]),
    ([["colour", "red"], ("size", 3)], [("colour", "red"), ("size", "3")]),
    ({"colour": ["red", "green"], "size": None}, [("colour", "red, green"), ("size", "")]),
    ([{"key": "colour", "value": " red "}], [("colour", "red")]),
    ("colour#;#size#:#3#:#4", [("colour", ""), ("size", "3#:#4")]),
    ("-", []), ("", []), (None, []), ([], []),
])
def test_tables_as_people_write_them(table, pairs):
    assert parse_table(table) == pairs


def test_tokens_know_their_property_or_value_also_where_the_table_is_cut(settings):
    arrays, problems = load(TableField(settings, MODEL), {"size of": "red green", "colour": "red"},
                            [["size", ""], ["colour", "red"]], [["size", ""]])
    assert problems == [None] * 3
    cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
    of, red, green, colour, size = (TOKENIZER.pieces([word])[0][0] for word in
                                    ("of", "red", "green", "colour", "size"))
    rows = [[cls, size, of, red, green, colour, red, sep], [cls, colour, red, sep], [cls, sep]]
    for row, ids in enumerate(rows):
        assert arrays["table_ids"][row].tolist() == ids + [TOKENIZER.pad_id] * (8 - len(ids))
        assert arrays["table_mask"][row].sum() == len(ids)
    assert arrays["table_entity"].tolist() == [[0, 1, 1, 2, 2, 3, 4, 0],
                                               [0, 1, 2, 0, 0, 0, 0, 0], [0] * 8]
    assert arrays["table_present"].tolist() == [True, True, False]
    settings.table_length = 4
    cut, _ = load(TableField(settings, MODEL), {"size of": "red green"})
    assert cut["table_ids"].tolist() == [[cls, size, of, red]]
    assert cut["table_entity"].tolist() == [[0, 1, 1, 2]]


def test_properties_without_a_value_are_told(settings):
    field = TableField(settings, MODEL)
    load(field, [["size", ""], ["colour", "red"]], [["size", None]], [])
    assert field.notes() == ["2 properties without a value were left out of their tables, 1 tables "
                             "had no value at all"]


@pytest.mark.parametrize("table, sentence", [
    (7, "the table is a int; write it as [["), (["red"], "has the entry red, which is no pair"),
    ([["a", "b", "c"]], "which is no pair"), ({"a": {"b": "c"}}, "which is no text"),
])
def test_what_is_no_table(settings, table, sentence):
    _, problems = load(TableField(settings, MODEL), [["size", "large"]], table)
    assert problems[0] is None and sentence in problems[1]


def test_missing_values_are_imputed_as_in_the_release(settings):
    for field in (VideoField(settings), RegionsField(settings)):
        arrays, _ = load(field, None)
        assert not arrays[field.name].any() and not arrays[f"{field.name}_present"].any()
        assert arrays[f"{field.name}_mask"].tolist() == [[1, 1, 1]]
    arrays, _ = load(TitleField(settings, MODEL), [], ["lamp"], [" "])
    assert arrays["title_present"].tolist() == [False, True, False]
    assert arrays["title_mask"].sum(axis=1).tolist() == [2, 3, 2]


def test_boxes_and_masks_of_regions(settings):
    boxes = np.array([[0, 0, 10, 20], [5, 5, 10, 10]], np.float32)
    arrays, _ = load(RegionsField(settings), Regions(np.ones((2, 2)), boxes, (10, 20)))
    np.testing.assert_allclose(arrays["regions_box"][0], [
        [0, 0, 1, 1, 1], [0.5, 0.25, 1, 0.5, 0.125], [0] * 5])
    assert arrays["regions_mask"].tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("value, sentence", [
    (np.ones((2, 3)), "features of shape [2, 3], not [n, 2]"), (np.ones(2), "of shape [2], not"),
    (np.array([[1, np.nan]]), "features that are not finite"),
    (np.array([[1, np.inf]]), "features that are not finite"),
])
def test_features_that_cannot_be_used(settings, value, sentence):
    _, problems = load(VideoField(settings), np.ones((1, 2)), value)
    assert problems[0] is None and sentence in problems[1]


@pytest.mark.parametrize("boxes, size, sentence", [
    (np.ones((1, 4)), (9, 9), "boxes of shape [1, 4] in an image of 9 x 9 for 2 regions"),
    (np.ones((2, 4)), (0, 9), "in an image of 0 x 9"),
    (np.full((2, 4), np.nan), (9, 9), "boxes that are not finite"),
])
def test_boxes_that_cannot_be_used(settings, boxes, size, sentence):
    _, problems = load(RegionsField(settings), Regions(np.ones((2, 2)), boxes, size))
    assert sentence in problems[0]


def test_sounds_may_be_read_along_time(settings):
    settings.update(audio_length=3, audio_width=2, audio_axis="time", audio_pool=2)
    field = AudioField(settings)
    field.check()
    field.check_facts({"width": 5}, "here")
    arrays, _ = load(field, np.array([[1.0, 3, 5, 7, 9], [0, 0, 2, 2, 4]]))
    assert arrays["audio"].tolist() == [[[2, 0], [6, 2], [9, 4]]]
    settings.audio_axis = "frequency"
    with pytest.raises(UserError, match="data.audio_axis is 'frequency'; choose one of"):
        AudioField(settings).check()


def test_the_width_of_a_source_is_compared_at_the_start(settings):
    with pytest.raises(UserError, match=r"data.video_width is 2, but features 'video' of evals.dev "
                                        r"are 7 wide; set data.video_width=7"):
        VideoField(settings).check_facts({"width": 7}, "evals.dev")
