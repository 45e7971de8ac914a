"""Tasks on scenes: balanced, so that the text alone does not give the answer away."""

import collections
import hashlib
import json

import ml_collections
import numpy as np
import pytest

from albef_jax.data.fields.answers import answers_of
from albef_jax.data.text import clean, make_tokenizer
from albef_jax.errors import UserError
from albef_jax.scenes.levels import get_level

SCENES = {("demo", "train"): 600, ("demo", "heldout"): 300, ("full", "heldout"): 64}
TASKS = ("scenes_vqa", "scenes_nlvr", "scenes_ve", "scenes_grounding")
# Of texts, labels and boxes; whoever changes what a seed gives enters the new ones.
DIGESTS = dict(zip(TASKS, ("2b2a78734a5a63c8", "cd07e5bd1bfe1c6c", "3eab22de6dea1b70",
                           "50dc9d06dd712807")))
sets = pytest.mark.parametrize("level, split", SCENES)


@sets
def test_curtains_cover_what_they_hide_wholly(make, level, split):
    source, scenes = make("scenes_ve", level, split), make("scenes", level, split)
    covered = 0
    for index in range(120):
        curtain, scene = source.curtain(index), source.image_id(index)
        plain = scenes.image(scene)
        if curtain is None:
            np.testing.assert_array_equal(source.image(index), plain)
            continue
        x0, y0, x1, y1 = curtain
        assert (x1 - x0, y1 - y0) == (plain.shape[0] // 4,) * 2
        changed = source.image(index)
        assert len(np.unique(changed[y0:y1, x0:x1])) == 1
        changed = changed.copy()
        changed[y0:y1, x0:x1] = plain[y0:y1, x0:x1]
        np.testing.assert_array_equal(changed, plain)
        hidden = 0
        for thing in source.graph(scene)["objects"]:
            a0, b0, a1, b1 = thing["box"]
            inside = x0 <= a0 and y0 <= b0 and a1 <= x1 and b1 <= y1
            assert inside or a1 <= x0 or x1 <= a0 or b1 <= y0 or y1 <= b0
            hidden += inside
        assert hidden < 2
        covered += hidden
    assert covered > 10


def test_shares_and_balance(make, texts):
    vqa = make("scenes_vqa")
    kinds = collections.Counter(vqa.question_type(i) for i in range(len(vqa)))
    wanted = {"yes/no": 0.42, "colour": 0.28, "shape": 0.2, "count": 0.05, "relation": 0.05}
    shares = {kind: count / len(vqa) for kind, count in kinds.items()}
    assert shares == pytest.approx(wanted, abs=0.03)
    assert len(set(answers_of(vqa))) == len(answers_of(vqa)) == 28
    rows = [(text, vqa.answers(i)[0][0]) for i, text in enumerate(texts(vqa))
            if vqa.question_type(i) == "yes/no"]
    assert unbalanced(rows) == []
    ve = make("scenes_ve")
    assert unbalanced([(text, ve.label(i)) for i, text in enumerate(texts(ve))]) == []
    hidden = collections.Counter(ve.label(i) for i in range(len(ve)) if ve.curtain(i))
    counts = collections.Counter(ve.label(i) for i in range(len(ve)))
    assert max(counts.values()) - min(counts.values()) < 2
    assert hidden[1] == counts[1]
    assert all(0.4 < hidden[label] / counts[label] < 0.6 for label in (0, 2))


def unbalanced(rows, limit=4.0):
    """Words that go with a label more or less often than chance allows, by standard deviations."""
    labels = {label for _, label in rows}
    counts = collections.Counter(
        (word, label) for text, label in rows for word in set(text.split()))
    found = []
    for word in {word for word, _ in counts}:
        total, share = sum(counts[word, label] for label in labels), 1 / len(labels)
        deviation = (total * share * (1 - share)) ** 0.5
        found += [(word, label, counts[word, label], total) for label in labels
                  if abs(counts[word, label] - total * share) > limit * deviation]
    return found


def exact_guess(rows, asked):
    """The commonest answer to the same text, else of all."""
    known = collections.defaultdict(collections.Counter)
    for text, label in rows:
        known[text][label] += 1
        known[""][label] += 1
    return [known[text if text in known else ""].most_common(1)[0][0] for text in asked]


def learnt_guess(rows, asked, steps=60):
    """Logistic regression on words, their pairs and the first words."""
    def grams(text):
        words = text.split()
        return {*words, *zip(words, words[1:]), ("first", *words[:3])}

    common = collections.Counter(gram for text, _ in rows for gram in grams(text))
    column = {gram: i for i, gram in enumerate(gram for gram, n in common.items() if n > 8)}
    labels = sorted({label for _, label in rows})

    def matrix(all_texts):
        x = np.zeros((len(all_texts), len(column) + 1), np.float32)
        for row, text in enumerate(all_texts):
            x[row, [column[gram] for gram in grams(text) if gram in column] + [-1]] = 1
        return x

    x = matrix([text for text, _ in rows])
    y = np.array([[label == other for other in labels] for _, label in rows], np.float32)
    weights, speed = np.zeros((x.shape[1], len(labels)), np.float32), 0
    for _ in range(steps):
        scores = np.exp(x @ weights)
        gradient = x.T @ (scores / scores.sum(1, keepdims=True) - y) / len(x)
        speed = 0.9 * speed - 0.5 * gradient
        weights = weights + speed
    return [labels[i] for i in (matrix(asked) @ weights).argmax(1)]


@pytest.mark.parametrize("task", TASKS[:3])
def test_text_alone_stays_within_ten_points_of_the_commonest_answer(make, task, texts):
    def rows(source):
        return [(text, source.label(i) if "label" in source.fields else source.answers(i)[0][0])
                for i, text in enumerate(texts(source))]

    train, asked = rows(make(task)), rows(make(task, split="heldout"))
    truth = [label for _, label in asked]
    majority = max(collections.Counter(truth).values()) / len(truth)
    expected = {"scenes_vqa": 0.21, "scenes_nlvr": 0.5, "scenes_ve": 1 / 3}[task]
    assert majority == pytest.approx(expected, abs=0.03)
    for guess in (exact_guess, learnt_guess):
        blind = np.mean([a == b for a, b in zip(guess(train, [text for text, _ in asked]), truth)])
        assert blind < majority + 0.1, guess.__name__


def test_the_guesses_find_what_can_be_found():
    rows = [(f"is {word} there {n}", word < "e") for word in "abcdefghij" for n in range(40)]
    for guess in (exact_guess, learnt_guess):
        assert guess(rows, [text for text, _ in rows]) == [label for _, label in rows]


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_a_function_of_seed_split_and_index(make, task):
    digest = hashlib.blake2b(digest_size=8)
    source = make(task)
    read_too = [field for field in ("label", "answers", "box", "proposals")
                if field in source.fields]
    for index in range(40):
        read = [source.get(index, field) for field in read_too]
        digest.update(json.dumps([source.text(index), read]).encode())
    assert digest.hexdigest() == DIGESTS[task]
    again = make(task)
    assert [again.text(i) for i in (39, 7)] == [source.text(i) for i in (39, 7)]
    assert make(task, seed=1, size=64).text(7) != source.text(7)
    assert len({source.fingerprint, make(task, per_scene=2).fingerprint,
                make(task, split="heldout").fingerprint}) == 3


def test_examples_of_a_scene_show_its_image(make):
    vqa, nlvr = make("scenes_vqa"), make("scenes_nlvr")
    scenes = make("scenes")
    assert len(vqa) == len(nlvr) == 4 * len(scenes)
    for index in (0, 3, 4, 99):
        assert vqa.image_id(index) == index // 4
        np.testing.assert_array_equal(vqa.image(index), scenes.image(index // 4))
        for image, scene in zip(nlvr.image(index), nlvr.scenes(index), strict=True):
            np.testing.assert_array_equal(image, scenes.image(scene))
    assert vqa.describes(4, 0, 5) and not vqa.describes(4, 0, 3)
    assert "heldout" in make("scenes_ve", split="heldout").name(9)


def test_one_vocabulary_for_all_tasks(make):
    """Every word is one piece of the demo's tokenizer, and every text fits its length."""
    config = ml_collections.ConfigDict(dict(tokenizer="", max_words=30, vocab_size=400))
    tokenizer = make_tokenizer(config, make("scenes"))
    assert list(make("scenes_vqa").words()) == list(make("scenes").words())
    known = tokenizer.vocabulary
    for task in TASKS:
        source = make(task)
        cleaning = source.fields["text"]["cleaning"]
        said = [clean(source.text(i)[0], cleaning, 30) for i in range(2000)]
        said += answers_of(source) if task == "scenes_vqa" else []
        assert {word for text in said for word in text.split()} <= known.keys()
        assert max(len(text.split()) for text in said) <= get_level("demo").max_words


@pytest.mark.parametrize("task, options, message", [
    ("scenes_vqa", dict(per_scene=0), "has per_scene=0; it must be a whole number, from 1 to"),
    ("scenes_nlvr", dict(per_scene=3), "multiple of 2 .* not 3"),
    ("scenes_nlvr", dict(size=20), "size of at least 64, not 4 and 20"),
    ("scenes_ve", dict(swapped=0.5), "options of the data source of kind 'scenes_ve' are wrong"),
])
def test_wrong_options(make, task, options, message):
    with pytest.raises(UserError, match=message):
        make(task, **options)
