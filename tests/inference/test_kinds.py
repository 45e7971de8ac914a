"""Loaded models of the tasks that answer and classify, and what all of them predict."""

import json

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.cli import main
from albef_jax.data.fields.answers import encode_answers
from albef_jax.data.images.pillow import WHOLE, load_image
from albef_jax.errors import UserError
from albef_jax.inference.answers import AnswerModel, ClassModel
from albef_jax.inference.api import model_class
from albef_jax.inference.features import FeatureModel
from albef_jax.inference.model import Model
from albef_jax.inference.products import ProductModel
from albef_jax.inference.regions import RegionModel
from albef_jax.tasks import TASKS, make_task

ANSWERS = ["red", "a small circle", "blue", "circle and square"]


@pytest.fixture(scope="module")
def vqa_run(config_of, saved, tmp_path_factory):
    """A work directory with fresh weights."""
    config = config_of("vqa")
    config.data.update(answer_length=8, eval_text_length=20)
    return saved(config, tmp_path_factory.mktemp("vqa") / "run")


def test_answers_are_those_of_the_task(vqa_run, scenes):
    model, image = albef_jax.load(vqa_run), scenes / "a" / "00.png"
    functions = make_task(model.config).predict_fns()
    ids, mask = model.tokenizer.encode(["what colour is the circle"], 20)
    pixels = load_image(image.read_bytes(), WHOLE, 32)[None]
    candidates = encode_answers(ANSWERS, model.tokenizer, 8)

    @jax.jit
    def expected(params):
        states = functions["encode"](params, pixels, ids, mask)
        return (functions["rank"](params, states, mask, candidates, 3, True),
                functions["generate"](params, states, mask, model.tokenizer.sep_id, 8, 2))

    (chosen, scores), (ids, log_probabilities) = expected(model.params)

    found = model.answer(image, "What colour is the circle?", ANSWERS, k=3)
    assert [text for text, _ in found] == [ANSWERS[i] for i in np.asarray(chosen[0])]
    np.testing.assert_allclose([p for _, p in found], jax.nn.softmax(scores[0]), atol=1e-5)
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)

    written = model.answer(image, "What colour is the circle?", beams=2)
    assert [text for text, _ in written] == [model.tokenizer.decode(row) for row in ids[0]]
    np.testing.assert_allclose([p for _, p in written], np.exp(log_probabilities[0]),
                               rtol=1e-3)


def test_the_command_prints_the_best_answers(vqa_run, scenes, tmp_path, capsys):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(ANSWERS))
    image = str(scenes / "a" / "01.png")
    assert main(["answer", str(vqa_run), "--image", image, "--question", "how many?",
                 "--answers", str(path), "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = albef_jax.load(vqa_run).answer(image, "how many?", path, k=2)
    assert [line.split("  ")[-1] for line in lines] == [text for text, _ in expected]
    for wrong, sentence in ((["--answers", "gone.json"], "gone.json cannot be read"),
                            (["--image", "gone.png"], "gone.png cannot be read"),
                            (["--beams", "2", "--answers", str(tmp_path)], "cannot be read")):
        assert main(["answer", str(vqa_run), "--image", image, "--question", "q", *wrong]) == 2
        assert sentence in capsys.readouterr().err


def test_captions_are_answers_to_the_question_of_training(config_of, saved, scenes, capsys,
                                                          tmp_path_factory):
    config = config_of("vqa")
    config.data.source = dict(kind="captions", source=config.data.source, question="what is it")
    run = saved(config, tmp_path_factory.mktemp("captions") / "run")
    model, image = albef_jax.load(run), scenes / "a" / "00.png"
    written = model.caption(image, beams=2)
    assert written == model.answer(image, "what is it", beams=2) and len(written) == 2
    assert main(["caption", str(run), "--image", str(image), "--beams", "2"]) == 0
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()] == [
        text for text, _ in written]


def test_who_answers_questions_or_compares_writes_no_captions(vqa_run, workdir, scenes, capsys):
    image = str(scenes / "a" / "00.png")
    for run, sentence in ((vqa_run, "has learned to answer questions, not to write captions"),
                          (workdir, "A model of the task 'pretrain' has no caption; it has")):
        assert main(["caption", str(run), "--image", image]) == 2
        assert sentence in capsys.readouterr().err


def test_what_a_task_does_not_offer(vqa_run, scenes):
    model, image = albef_jax.load(vqa_run), scenes / "a" / "00.png"
    with pytest.raises(UserError, match="task 'vqa' has no encode_image; it has answer, "
                                        "caption, predict, so load"):
        model.encode_image([image])
    with pytest.raises(UserError, match="The question is blank"):
        model.answer(image, " ")
    with pytest.raises(UserError, match="Got 2 questions"):
        model.answer(image, ["one?", "two?"])
    with pytest.raises(UserError, match="'circle and square circle and square' has more than"):
        model.answer(image, "one?", ["red", " ".join(ANSWERS[3:] * 2)])
    assert not hasattr(model, "match")


@pytest.mark.parametrize("task_name, views, classes", [
    ("ve", 1, ["contradiction", "neutral", "entailment"]), ("nlvr", 2, ["false", "true"])])
def test_classify(config_of, tokenizer, scenes, task_name, views, classes):
    config = config_of(task_name)
    config.data.eval_text_length = 20
    task = make_task(config)
    model = ClassModel(config, jax.jit(task.init)(jax.random.key(1)), tokenizer)
    paths = sorted((scenes / "a").glob("*.png"))[:views]
    found = model.classify(paths if views > 1 else paths[0], "A red circle.")
    ids, mask = tokenizer.encode(["a red circle"], 20)
    pixels = np.stack([load_image(path.read_bytes(), WHOLE, 32) for path in paths])
    logits = jax.jit(task.predict_fns()["classify"])(
        model.params, pixels if views == 1 else pixels[None], ids, mask)
    assert list(found) == classes
    np.testing.assert_allclose(list(found.values()), jax.nn.softmax(logits[0]), atol=1e-5)
    with pytest.raises(UserError, match=f"{views + 1} image.s.; a model of the task '{task_name}'"):
        model.classify([*paths, paths[0]], "A red circle.")
    with pytest.raises(UserError, match="gone.png cannot be read .*give a complete picture in a"):
        model.classify([*paths[1:], "gone.png"], "A red circle.")


def test_every_task_can_be_loaded(config_of, tokenizer):
    """By what it offers."""
    classes = {}
    for name in TASKS:
        task, config = make_task(config_of(name)), config_of(name)
        classes[name] = model_class(task.predict_fns(), task.fields(config))
    assert classes == {"pretrain": FeatureModel, "retrieval": FeatureModel, "vqa": AnswerModel,
                       "ve": ClassModel, "nlvr": ClassModel, "nlvr_pretrain": Model,
                       "scale_pretrain": ProductModel, "scale_classify": ProductModel,
                       "imagebert_pretrain": RegionModel, "imagebert_retrieval": RegionModel}
    model = Model(config_of("nlvr_pretrain"), {}, tokenizer)
    with pytest.raises(UserError, match="'nlvr_pretrain' has no match; it has nothing to offer"):
        model.match("a.png", "a")
    with pytest.raises(UserError, match="has no function 'match'; it has none"):
        model.predict("match", text=["a"])


def test_predict_is_what_the_methods_say(model, scenes):
    """In blocks of four rows, with images in any form; a tree of arrays comes back."""
    paths = sorted((scenes / "a").glob("*.png"))[:6]
    tokens, features = model.predict("encode_image", image=[paths[0].read_bytes(), *paths[1:]])
    assert tokens.shape[0] == 6 and type(tokens) is np.ndarray
    np.testing.assert_array_equal(features, model.encode_image(paths))
    texts = ["A red circle.", "a blue square", "triangle"]
    np.testing.assert_array_equal(model.predict("encode_text", text=texts)[1],
                                  model.encode_text(texts))
    heat, _ = model.predict("itm_heat", image=paths[:3], text=texts)
    np.testing.assert_allclose(heat[1].mean(axis=0), model.explain(paths[1], texts[1]).heat,
                               rtol=1e-4, atol=1e-9)


def test_predict_reads_as_the_task_does(vqa_run, config_of, tokenizer, scenes):
    """Questions are cleaned as questions; two images are a list of them."""
    paths = sorted((scenes / "a").glob("*.png"))[:4]
    model = albef_jax.load(vqa_run)
    states = model.predict("encode", image=paths[:1], text=["What is <person>?"])
    ids, mask = model.tokenizer.encode(["what is <person>"], 20)
    assert mask.sum() > model.tokenizer.encode(["what is person"], 20)[1].sum()  # as of a caption
    expected = model.forward.compiled(model.forward["encode"])(
        model.params, image=load_image(paths[0].read_bytes(), WHOLE, 32)[None], text_ids=ids,
        text_mask=mask)
    np.testing.assert_array_equal(states, expected)

    config = config_of("nlvr")
    model = ClassModel(config, jax.jit(make_task(config).init)(jax.random.key(1)), tokenizer)
    logits = model.predict("classify", image=[paths[:2], paths[2:]], text=["a", "red circle"])
    assert logits.shape == (2, 2)
    for images, text, row in ((paths[:2], "a", 0), (paths[2:], "red circle", 1)):
        np.testing.assert_allclose(jax.nn.softmax(logits[row]),
                                   list(model.classify(images, text).values()), atol=1e-5)


@pytest.mark.parametrize("call, words", [
    (lambda m, p: m.predict("embed", image=[p]), "no function 'embed'; it has encode_image, enc"),
    (lambda m, p: m.predict("encode_image", audio=[p]), "no field 'audio'; its fields are image, "),
    (lambda m, p: m.predict("match", image=[p, p], text=["a"]), "{'image': 2, 'text': 1}; give "),
    (lambda m, p: m.predict("encode_image", image=[]), "{'image': 0}; give each field one"),
    (lambda m, p: m.predict("encode_image"), "at least one"),
    (lambda m, p: m.predict("encode_image", image=[p, "gone.png"]), "image gone.png cannot be "),
])
def test_predictions_that_make_no_sense(model, scenes, call, words):
    with pytest.raises(UserError) as error:
        call(model, scenes / "a" / "00.png")
    assert words in str(error.value)


def test_missing_words_are_those_of_the_language_head(model, scenes):
    """At the places of the gaps, on the text with [MASK] there; others of the text stay."""
    image = scenes / "a" / "00.png"
    found = model.complete(image, "A ___ circle, and a [MASK] square")
    assert len(found) == 2 and all(len(words) == 5 for words in found)
    ids, mask = model.tokenizer.encode(["a x circle and a x square"], 12)
    (unknown,) = set(ids[0, [2]])
    ids[ids == unknown] = model.tokenizer.mask_id
    logits = model.forward["mlm_logits"](
        model.params, jax.device_get(model.encode_patches(image)), ids, mask)
    likeliest = np.argsort(-np.asarray(logits[0, [2, 6]]), axis=1)[:, 0]
    assert [words[0][0] for words in found] == [model.tokenizer.decode([i]) for i in likeliest]
    with pytest.raises(UserError, match="has no gap among the .* tokens that are read"):
        model.complete(image, "a circle")
    with pytest.raises(UserError, match="The text is blank"):
        model.complete(image, " ")
