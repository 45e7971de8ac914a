"""VQA accuracy against cases worked out by hand, and the evaluator on a model that is a table."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators.answer_scores import RightAnswers, answer_type, normalise_answer

ANSWERS = ["yes", "no", "2", "red", "dark red"]


@pytest.mark.parametrize("answer, normal", [
    ("Yes.", "yes"), ("A dog", "dog"), ("the man's hat", "man's hat"), ("two", "2"),
    ("None", "0"), ("ten dogs", "10 dogs"), ("1,000", "1000"), ("3.5", "3.5"), ("Mr. X.", "mr x"),
    ("red/white", "red white"), ("black-and-white!", "black and white"), ("dont", "don't"),
    ("theyre here", "they're here"), ("its", "its"), ("10:30", "10:30"), ("  a  b ", "b"),
    ("yes, it is", "yes it is")])
def test_normalisation(answer, normal):
    assert normalise_answer(answer) == normal


def test_answer_types():
    assert [answer_type(a) for a in ("yes", "no", "3", "3.5", "10", "red", "3 dogs", "")] == [
        "yes/no", "yes/no", "number", "number", "number", "other", "other", "other"]


@pytest.mark.parametrize("times, accuracy", [
    # Leaving out one of those who gave it (n - 1 remain) or one of the others (n remain).
    (0, 0.0), (1, (9 * 1 / 3) / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10),
    (4, 1.0), (10, 1.0)])
def test_ten_annotators(times, accuracy):
    given = ["Dog."] * times + ["a cat"] * (10 - times)
    right = RightAnswers([("dog", times / 10), ("cat", 1 - times / 10)], given)
    assert right.accuracy("dog") == pytest.approx(accuracy)


def test_fewer_annotators_count_by_weight():
    right = RightAnswers([("knife", .25), ("A knife", .25), ("fork", .5), ("cup", .2)])
    shares = [right.accuracy(answer) for answer in ("knife", "fork", "cup", "spoon")]
    np.testing.assert_allclose(shares, [.5 / 1.2, .5 / 1.2, .2 / 1.2, 0])
    assert sorted(right.best) == ["fork", "knife"]


@pytest.fixture
def tokenizer():
    return train_tokenizer([*ANSWERS, "which one is it"] * 3, 100)


@pytest.fixture
def questions(tmp_path):
    """`questions(rows)` -> a source block: 6 questions about images of one grey level each."""
    def make(answers=("yes", "yes", "yes", "2", "red", "dark red")):
        rows = []
        for i in range(6):
            Image.new("RGB", (16, 16), (i * 40,) * 3).save(tmp_path / f"{i}.png")
            rows.append({"question_id": 100 + i, "image": f"{i}.png", "question": "Which one?"})
            if answers:
                rows[-1]["answer"] = answers[i]
        (tmp_path / "questions.json").write_text(json.dumps(rows))
        return dict(kind="vqa", files=(str(tmp_path / "questions.json"),))

    return make


def encode(params, image, text_ids, text_mask):
    """The number of the image, from its grey level."""
    return jnp.round(image[:, 0, 0, 0] / 40).astype(jnp.int32)


def rank(params, states, mask, candidates, k, first_twice):
    """Scores from a table, image by candidate; one candidate is preferred when counted twice."""
    scores = params["table"][states] + first_twice * params["bonus"]
    best, chosen = jax.lax.top_k(scores, k)
    return chosen, best


def generate(params, states, mask, end_id, length, beams):
    """Writes the answers of the table, the second best first for more than one beam."""
    rows = params["ids"][params["table"][states].argsort(axis=-1)[:, -min(beams, 2)]]
    return rows[:, None], jnp.zeros((len(rows), 1))


FUNCTIONS = dict(encode=encode, rank=rank, generate=generate)


@pytest.fixture
def params(tokenizer):
    """The best answers of the six images: yes, no, yes, 2, red, red."""
    table = np.zeros((6, 5), np.float32)
    for image, (best, second) in enumerate([(0, 1), (1, 0), (0, 1), (2, 3), (3, 4), (3, 4)]):
        table[image, best], table[image, second] = 2, 1
    return {"table": jnp.asarray(table), "bonus": jnp.asarray([0, 0, 0, 0, 1.5]),
            "ids": jnp.asarray(tokenizer.encode(ANSWERS, 5, sep=True)[0])}


@pytest.fixture
def config(config_of):
    config = config_of("vqa")
    config.data.answer_length = 5
    return config


@pytest.fixture
def answer(build, evaluate, params, tmp_path):
    """`answer(source, k=3)` -> values, predictions and the evaluator."""
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))

    def run(source, **options):
        options = dict(answers=str(tmp_path / "answers.json"), batch_size=4) | options
        evaluator = build("vqa", source, **options)
        values = evaluate(evaluator, params, FUNCTIONS)
        assert values == evaluate(evaluator, params, FUNCTIONS)
        assert len(evaluator.predictions) == 6
        return values, [p["answer"] for p in evaluator.predictions], evaluator

    return run


def test_values_by_hand(answer, questions):
    values, answers, evaluator = answer(questions(), rank="likelihood")
    assert answers == ["yes", "no", "yes", "2", "red", "red"]
    assert evaluator.predictions[3] == {"question_id": 103, "answer": "2"}
    assert evaluator.description == "6 questions, 5 answers to choose from"
    assert values == pytest.approx({
        "vqa_accuracy": 100 * 4 / 6, "exact_match": 100 * 4 / 6, "accuracy_yes/no": 100 * 2 / 3,
        "accuracy_number": 100, "accuracy_other": 50, "majority": 50,
        "majority_per_type": 100 * 5 / 6})


def test_rank_modes_and_writing(answer, questions):
    # Twice the first word prefers the fifth answer where its score is second.
    assert answer(questions())[1] == ["yes", "no", "yes", "2", "dark red", "dark red"]
    assert answer(questions(), mode="greedy")[1] == ["yes", "no", "yes", "2", "red", "red"]
    assert answer(questions(), mode="beam", beams=2)[1] == [
        "no", "yes", "no", "red", "dark red", "dark red"]


def test_several_answers_and_types_of_questions(answer, questions, monkeypatch):
    from albef_jax.data.sources.vqa_json import VqaJsonSource
    monkeypatch.setattr(VqaJsonSource, "question_type", raising=False,
                        value=lambda self, index: ("colour" if index < 4 else "count"))
    finish = VqaJsonSource.finish
    monkeypatch.setattr(VqaJsonSource, "finish", lambda self: (
        finish(self), self.fields.update(question_type={})))
    given = [["yes"] * 3 + ["no"] * 7, ["no", "yes"], "yes", "2", "red", "dark red"]
    values, _, _ = answer(questions(given), rank="likelihood")
    accuracy = [.9, .5, 1, 1, 1, 0]
    assert values["vqa_accuracy"] == pytest.approx(100 * sum(accuracy) / 6)
    assert values["exact_match"] == pytest.approx(100 * 4 / 6)
    assert values["accuracy_colour"] == pytest.approx(100 * sum(accuracy[:4]) / 4)
    # Of the first four "yes" has the weight 1.8 and scores .9, .5, 1 and 0.
    assert values["majority_per_type"] == pytest.approx(100 * (2.4 + 1) / 6)


def test_questions_without_answers_give_predictions(answer, questions):
    values, answers, _ = answer(questions(answers=()))
    assert values == {} and answers[0] == "yes"
    with pytest.raises(UserError, match="questions without answers and no list to choose from"):
        answer(questions(answers=()), answers="")


def test_the_answers_of_the_source_are_the_default_list(answer, questions):
    values, _, evaluator = answer(questions(["yes", "no", "2", "red", "dark red", "red"]),
                                    answers="")
    assert evaluator.description.endswith("5 answers to choose from")
    assert values["vqa_accuracy"] > 0


@pytest.mark.parametrize("contents, sentence", [
    ("[]", "must be a JSON list of texts"), ('{"a": 1}', "must be a JSON list"),
    ('["yes", 1]', "must be a JSON list"), ("[", "is not valid JSON"),
    ('["yes", "red red red red"]', "The answer 'red red red red' has more than "
     "data.answer_length=5 tokens"), (None, "cannot be read")])
def test_answer_lists_that_cannot_be_used(answer, questions, tmp_path, contents, sentence):
    path = tmp_path / "other.json"
    if contents:
        path.write_text(contents)
    with pytest.raises(UserError) as error:
        answer(questions(), answers=str(path))
    assert sentence in str(error.value)
