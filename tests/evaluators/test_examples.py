"""What evaluators show of a few examples: every picture, text and number against a plain loop."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from albef_jax.config import load_config
from albef_jax.data.sources import make_source
from albef_jax.data.text import clean_caption, train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import make_evaluators
from albef_jax.evaluators.base import Forward
from albef_jax.evaluators.queries import best, pseudo_targets, queries, spread
from albef_jax.evaluators.words import draw_masked
from albef_jax.parallel.mesh import make_mesh
from albef_jax.tasks import make_task

CONFIG = Path(__file__).parents[1] / "tiny.py"
HELD_OUT = {"kind": "synthetic", "size": 24, "image_size": 32}
CHOSEN = ("red", "green", "blue")
LABELS = ("contradiction", "neutral", "entailment")


@pytest.fixture(scope="module")
def model():
    """Two evaluators; a random model and a teacher of other weights; tokenizer and source."""
    config = load_config(f"{CONFIG}:learn")
    config.evals.words.words = CHOSEN
    config.model.fusion_layers = 2  # in the last one only [CLS] looks at the image
    source = make_source(HELD_OUT)
    captions = [clean_caption(c, 30) for i in range(len(source)) for c in source.get(i, "text")]
    tokenizer = train_tokenizer(captions, 200)
    config.model.update(vocab_size=tokenizer.vocab_size, cls_id=tokenizer.cls_id,
                        mask_id=tokenizer.mask_id)
    task = make_task(config)
    # Random weights have nearly equal [CLS] states; larger ones tell inputs apart.
    params, other = (jax.tree.map(lambda x: 3 * x, jax.jit(task.init)(jax.random.key(seed)))
                     for seed in (0, 1))
    params["temp"] = np.float32(0.07)
    forward = Forward(params, task.predict_fns(), make_mesh())
    teacher = forward.with_params({**params, **task.teacher_of(other)})
    return make_evaluators(config, tokenizer), forward, teacher, tokenizer, source


def compiled(forward):
    return {name: jax.jit(function) for name, function in forward.functions.items()}


def pixels(picture):
    """What tells pictures apart."""
    return picture.tobytes()


def numbers(source):
    """The example of each picture."""
    return {pixels(Image.fromarray(source.get(i, "image"))): i for i in range(len(source))}


def assert_best(found, scores, shown, chosen_by=None):
    """`found` are the best by `scores`, best first; or all of the best 4 by `chosen_by`."""
    rows = [row for row, _ in found]
    assert len(set(rows)) == len(rows) == shown
    np.testing.assert_allclose([score for _, score in found], scores[rows], rtol=1e-3, atol=1e-5)
    assert sorted((score for _, score in found), reverse=True) == [score for _, score in found]
    by = scores if chosen_by is None else chosen_by
    # Nearly equal ones may come in another order on another path through the same model.
    assert by[rows].min() >= np.sort(by)[-shown] - 1e-4


def test_queries_are_answered_as_by_a_plain_loop(model):
    """Similarities choose 4 candidates, the match logit orders them, own ones are marked."""
    evaluators, forward, _, _, source = model
    data, functions, params = evaluators["dev"].held_out, compiled(forward), forward.params
    assert len(set(data.texts)) == len(data.texts) == 48
    shown, pictures = numbers(source), np.stack([source.get(i, "image") for i in range(24)])
    image_embeds, image_feats = functions["encode_image"](params, pictures)
    text_embeds, text_feats = functions["encode_text"](params, data.text_ids, data.text_mask)
    sims = np.asarray(image_feats @ text_feats.T)

    def logits_of(image):
        images = np.broadcast_to(image_embeds[image], (48, *image_embeds[image].shape))
        logits = functions["match"](params, images, text_embeds, data.text_mask)
        return np.asarray(logits[:, 1])

    table = np.stack([logits_of(image) for image in range(24)])
    found = queries(forward, data, 4, sims)
    text_queries, image_queries = found["text_queries"], found["image_queries"]
    assert (text_queries["k"], text_queries["images"], image_queries["texts"]) == (4, 24, 48)
    text_queries, image_queries = text_queries["queries"], image_queries["queries"]
    rows = spread(24, 12)
    for query, image in zip(text_queries, rows[::2], strict=True):
        assert query["caption"] == data.texts[2 * image]
        found = [shown[pixels(item["picture"])] for item in query["found"]]
        assert_best([*zip(found, (item["score"] for item in query["found"]))],
                    table[:, 2 * image], 4, sims[:, 2 * image])
        assert [item["right"] for item in query["found"]] == [row == image for row in found]
        assert query["place"] == (found.index(image) + 1 if image in found else None)
        assert (query["answer"] is None) == (image in found)
        assert image in found or shown[pixels(query["answer"])] == image
    for query, image in zip(image_queries, rows[1::2], strict=True):
        assert shown[pixels(query["picture"])] == image
        found = [data.texts.index(item["text"]) for item in query["found"]]
        assert_best([*zip(found, (item["score"] for item in query["found"]))],
                    table[image], 4, sims[image])
        right = [text // 2 == image for text in found]
        assert [item["right"] for item in query["found"]] == right
        assert query["place"] == (right.index(True) + 1 if any(right) else None)
        assert any(right) or query["answer"] == data.texts[2 * image]
    marks = [item["right"] for query in text_queries + image_queries for item in query["found"]]
    assert any(marks) and not all(marks)


def test_words_are_the_likeliest_of_model_and_teacher(model):
    """Of a retrieval evaluator, where no words are chosen."""
    evaluators, forward, teacher, tokenizer, source = model
    data, functions, shown = evaluators["dev"].held_out, compiled(forward), numbers(source)
    masked = draw_masked(data.text_ids, tokenizer.special_ids, np.random.default_rng(0))
    sides = {"model": forward.params, "teacher": teacher.params}
    sections = evaluators["dev"].examples(forward, teacher)
    assert sections.keys() == {"text_queries", "image_queries", "pseudo_targets", "words", "heat"}
    for item in sections["words"]:
        image = shown[pixels(item["picture"])]
        caption = "".join(" " * p["space"] + p["text"] for p in item["pieces"]).strip()
        text = next(t for t in np.flatnonzero(data.text_image == image)
                    if data.texts[t] == caption)
        hidden = np.flatnonzero(masked[text])
        assert [p["text"] for p in item["pieces"] if p["masked"]] == [
            tokenizer.decode([data.text_ids[text, at]]).removeprefix("##") for at in hidden]
        ids = np.where(masked[text], tokenizer.mask_id, data.text_ids[text])
        for side, weights in sides.items():
            embeds, _ = functions["encode_image"](weights, source.get(image, "image")[None])
            logits = functions["mlm_logits"](weights, embeds, ids[None], data.text_mask[[text]])
            shares = np.asarray(jax.nn.softmax(logits[0]))
            for guess, at in zip(item["guesses"], hidden, strict=True):
                top = np.argsort(-shares[at])[:5]
                np.testing.assert_allclose([g["share"] for g in guess[side]], shares[at][top],
                                           rtol=1e-2, atol=1e-5)
                assert [g["right"] for g in guess[side]] == list(top == data.text_ids[text, at])
    assert item["guesses"][0]["model"] != item["guesses"][0]["teacher"]


def test_only_the_chosen_words_are_hidden(model):
    evaluators, forward, teacher, *_ = model
    shown = evaluators["words"].examples(forward, teacher)["words"]
    hidden = [piece["text"] for item in shown for piece in item["pieces"] if piece["masked"]]
    assert shown and set(hidden) <= set(CHOSEN)
    alone = evaluators["words"].examples(forward, None)["words"]
    assert [guess["model"] for item in alone for guess in item["guesses"]] == [
        guess["model"] for item in shown for guess in item["guesses"]]
    assert not any("teacher" in guess for item in alone for guess in item["guesses"])


def test_pseudo_targets_are_the_teachers_softmax(model):
    evaluators, forward, teacher, _, source = model
    data, functions = evaluators["dev"].held_out, compiled(forward)
    pictures = np.stack([source.get(i, "image") for i in range(len(source))])
    _, images = functions["encode_image"](teacher.params, pictures)
    _, texts = functions["encode_text"](teacher.params, data.text_ids, data.text_mask)
    shares = np.asarray(jax.nn.softmax(images @ texts.T / 0.07))
    found = pseudo_targets(forward, teacher, data)
    assert found["texts"] == 48
    for item, image in zip(found["images"], spread(24, 6), strict=True):
        assert item["caption"] == data.texts[2 * image]
        found = [data.texts.index(one["text"]) for one in item["found"]]
        assert_best([*zip(found, (one["share"] for one in item["found"]))], shares[image], 5)
        assert [one["right"] for one in item["found"]] == [t // 2 == image for t in found]


def test_best_follows_the_order_of_rank_and_spread_stays_inside():
    assert list(best(np.array([1.0, np.nan, 3.0, 3.0, 2.0, 0.0]))) == [3, 2, 4, 0, 5]
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 6) == [0, 1] and spread(1, 6) == [0] and spread(0, 6) == []


def test_heat_maps_and_shares_of_words(model):
    """The whole text, the probability of a match, and the words of each of five examples."""
    evaluators, forward, teacher, tokenizer, source = model
    rows, found = spread(24, 5), evaluators["dev"].examples(forward, teacher)["heat"]
    for item, row in zip(found, rows, strict=True):
        assert item["picture"].size == (120, 120)
        text = clean_caption(source.get(row, "text")[0], 30)
        assert item["text"] == text
        words = iter(text.split())  # of a long text the hottest ones, in their order
        assert all(word["text"] in words for word in item["words"])
        assert len(item["words"]) == min(10, len(text.split()))
        assert max(word["share"] for word in item["words"]) == pytest.approx(1)
        ids, mask = tokenizer.encode([text], 16)
        embeds, _ = forward["encode_image"](forward.params, source.get(row, "image")[None])
        states, _ = forward["encode_text"](forward.params, ids, mask)
        logits = forward["match"](forward.params, embeds, states, mask)
        assert item["score"] == pytest.approx(float(jax.nn.softmax(logits)[0, 1]), rel=1e-3)
        assert item["heat"].size == item["words"][0]["picture"].size == (120, 120)
        assert pixels(item["heat"]) != pixels(item["picture"])


@pytest.fixture
def tokenizer():
    return train_tokenizer(["a word about picture red green two", *"0123456789"] * 5, 100)


@pytest.fixture
def write(tmp_path):
    """Writes twelve grey pictures, the i-th of brightness 20 i, and rows about them."""
    def make(kind, row_of):
        for i in range(12):
            Image.new("RGB", (16, 16), (20 * i,) * 3).save(tmp_path / f"{i}.png")
        rows = [{"image": f"{i}.png", **row_of(i)} for i in range(12)]
        (tmp_path / f"{kind}.json").write_text(json.dumps(rows))
        return dict(kind=kind, files=(str(tmp_path / f"{kind}.json"),))

    return make


def brightness(image):
    return image.astype(jnp.float32).mean(axis=(1, 2, 3)) / 20


def rows_of(config, tokenizer, params, functions):
    (evaluator,) = make_evaluators(config, tokenizer).values()
    return evaluator.examples(Forward(params, functions, make_mesh()), None)["rows"]


def test_probabilities_of_classes(config_of, tokenizer, write):
    source = write("ve", lambda i: {"sentence": f"word {i}", "label": LABELS[i % 3]})
    config = config_of("ve")
    config.evals.held = dict(kind="classification", source=source, max_examples=10)

    def classify(params, image, text_ids, text_mask):  # class 1 grows with the brightness
        zeros = jnp.zeros(len(image))
        return jnp.stack([zeros, params["scale"] * (brightness(image) - 4.5), zeros], axis=1)

    shown = rows_of(config, tokenizer, {"scale": np.float32(0.5)}, {"classify": classify})
    rows = [0, 1, 3, 4, 5, 6, 8, 9]  # spread over the first ten
    assert [item["text"] for item in shown] == [f"word {row}" for row in rows]
    for item, row in zip(shown, rows, strict=True):
        logits = np.array([0, 0.5 * (row - 4.5), 0])
        shares = np.exp(logits) / np.exp(logits).sum()
        assert {choice["text"]: choice["share"] for choice in item["choices"]} == pytest.approx(
            dict(zip(LABELS, shares)), rel=1e-4)
        assert [c["right"] for c in item["choices"]].count(True) == 1
        assert item["truth"] == LABELS[row % 3]
        best_one = "neutral" if row > 4 else "contradiction"
        assert item["choices"][0]["text"] == best_one
        assert item["hit"] == (best_one == item["truth"])
        (picture,) = item["pictures"]
        assert pixels(picture) == pixels(Image.new("RGB", (16, 16), (20 * row,) * 3))


def test_likelihood_of_answers(config_of, tokenizer, write):
    source = write("vqa", lambda i: {"question": f"word {i}?", "question_id": i, "dataset": "vqa",
                                     "answer": ["red", "red", "two"]})
    config = config_of("vqa")
    config.evals.held = dict(kind="vqa", source=source, k=2)

    def rank(params, states, mask, candidates, k, first_twice):
        """The longer a candidate's number the likelier; brighter pictures are surer."""
        assert not first_twice
        order = jnp.arange(len(candidates[0]))[::-1][:k]
        return (jnp.broadcast_to(order, (len(states), k)),
                states[:, None] * jnp.linspace(0, -1, k)[None])

    def encode(params, image, text_ids, text_mask):
        return brightness(image)

    first, *_, last = rows_of(config, tokenizer, {}, {"encode": encode, "rank": rank})
    assert [choice["text"] for choice in last["choices"]] == ["two", "red"]
    assert all(choice["right"] for choice in last["choices"]) and last["truth"] == "red"
    assert last["choices"][0]["share"] > 0.99 > first["choices"][0]["share"]


def test_questions_without_answers_have_nothing_to_show(config_of, tokenizer, write):
    config = config_of("vqa")
    config.evals.held = dict(kind="vqa", mode="beam", source=write(
        "vqa", lambda i: {"question": "word", "question_id": i}))
    with pytest.raises(UserError, match="have no right answers to show"):
        rows_of(config, tokenizer, {}, {})
