"""The source of questions and answers: official rows, weights, and every wrong row."""

import json
import tarfile

import numpy as np
import pytest

from albef_jax.config import default_config
from albef_jax.data.fields import check_fields
from albef_jax.data.fields.answers import AnswersField, answers_of
from albef_jax.data.sources import make_source
from albef_jax.data.sources.base import pairs
from albef_jax.data.text import make_tokenizer
from albef_jax.errors import UserError
from albef_jax.tasks import task_class

QUESTIONS = pairs("question") | {"question_id": {}}
OFFICIAL = [
    {"question_id": 7, "image": "coco/1.jpg", "question": "What's on the table?",
     "dataset": "vqa", "answer": ["cup"] * 6 + ["a mug"] * 3 + ["tea"]},
    {"question_id": 8, "image": "vg/2.jpg", "question": "Where is the dog?", "dataset": "vg",
     "answer": "on the very long and soft sofa"},
    {"question_id": "x9", "image": "coco/1.jpg", "question": "Is it red?", "answer": ["yes"]},
]


@pytest.fixture
def open_rows(tmp_path, photo_jpeg):
    """`open_rows(rows)` -> the source, its images in a folder `coco` and a tar."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "1.jpg").write_bytes(photo_jpeg(20, 30, 1))
    (tmp_path / "2.jpg").write_bytes(photo_jpeg(20, 30, 2))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "2.jpg", "vg/2.jpg")

    def make(rows):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return make_source(dict(kind="vqa", files=(str(tmp_path / "rows.json"),), image_roots=(
            str(tmp_path), str(tmp_path / "images.tar"))))

    return make


def test_official_rows(open_rows, tmp_path):
    source = open_rows(OFFICIAL)
    assert len(source) == 3 and source.fields == QUESTIONS | {"answers": {}, "annotators": {}}
    assert source.answers(0) == [("cup", pytest.approx(.6)), ("a mug", pytest.approx(.3)),
                                 ("tea", pytest.approx(.1))]
    assert source.answers(1) == [("on the very long and soft sofa", .5)]
    assert source.get(0, "annotators") == OFFICIAL[0]["answer"]
    assert source.get(2, "annotators") == ["yes"]
    assert [source.get(i, "question_id") for i in range(3)] == [7, 8, "x9"]
    assert source.get(0, "text") == ["What's on the table?"]
    assert answers_of(source) == ["cup", "a mug", "tea", OFFICIAL[1]["answer"], "yes"]
    assert source.image(1) == (tmp_path / "2.jpg").read_bytes()
    assert source.image_id(0) == source.image_id(2) != source.image_id(1)
    assert list(source.words(step=2)) == ["What's on the table?", "cup", "a mug", "tea",
                                          "Is it red?", "yes"]
    check_fields(vqa_fields(), source)


def vqa_fields():
    config = default_config("vqa")
    return task_class("vqa").fields(config)


def test_a_test_split_has_no_answers(open_rows):
    source = open_rows([{k: v for k, v in row.items() if k != "answer"} for row in OFFICIAL])
    assert source.fields == QUESTIONS and source.get(0, "question_id") == 7
    assert list(source.words()) == [row["question"] for row in OFFICIAL]
    with pytest.raises(UserError, match="data.source has no field 'answers', which the task asks "
                                        "for; it has image, text, image_id, question_id: give"):
        check_fields(vqa_fields(), source)


@pytest.mark.parametrize("change, sentence", [
    ({"answer": []}, "Row 2 (counted from 0) of {path} has no answer but blank ones; give"),
    ({"answer": " "}, "has no answer but blank ones"),
    ({"answers": ["yes"], "answer": ...}, 'has "answers"; rename it "answer"'),
    ({"answer": 3}, "has the \"answer\" 3; give a text or a list of texts"),
    ({"answer": ["a", None]}, "give a text or a list of texts"),
    ({"dataset": "gqa"}, "is of the dataset 'gqa'; use 'vqa' or 'vg'"),
    ({"dataset": "vg", "answer": ["a", "b"]}, "is of the dataset 'vg' and has 2 answers"),
    ({"question": None}, 'must be an object whose "question" is a text'),
    ({"image": 5}, 'must be an object whose "image" is a text'),
    ({"answer": ...}, 'has no "answer", unlike the rows before it'),
])
def test_wrong_rows(open_rows, tmp_path, change, sentence):
    row = {k: v for k, v in (OFFICIAL[2] | change).items() if v is not ...}
    with pytest.raises(UserError) as error:
        open_rows([*OFFICIAL[:2], row])
    assert sentence.format(path=tmp_path / "rows.json") in str(error.value)


def test_batches(open_rows, data_config, make_fields, make_pipeline):
    source = open_rows(OFFICIAL)
    data_config.update(answer_length=5, max_answers=2, text_length=6)
    tokenizer = make_tokenizer(data_config, source)
    fields = make_fields() | {"answers": AnswersField(data_config, default_config().model)}
    pipeline = make_pipeline(source, 3, tokenizer=tokenizer, fields=fields)
    batch, order = pipeline.batch(0), list(pipeline.examples(0)[0])
    weights = {i: batch["answer_weight"][order.index(i)] for i in range(3)}
    # The two heaviest answers; the one that is too long weighs nothing and is told.
    np.testing.assert_allclose(weights[0], [.6, .3])
    np.testing.assert_allclose([weights[1], weights[2]], [[0, 0], [1, 0]])
    assert pipeline.notes() == ["1 answers are longer than data.answer_length and were left out: "
                                f"{OFFICIAL[1]['answer']}"]
    ids, mask = (batch[name][order.index(0)] for name in ("answer_ids", "answer_mask"))
    assert tokenizer.decode(ids[0]) == "cup" and ids[0, mask[0].sum() - 1] == tokenizer.sep_id


def test_a_missing_image_is_named(open_rows, make_pipeline):
    pipeline = make_pipeline(open_rows([OFFICIAL[0] | {"image": "gone.jpg"}] * 5), 4)
    with pytest.raises(UserError, match="No example of the data source can be read"):
        pipeline.batch(0)
    assert pipeline.broken.names == {"gone.jpg": "missing"}
