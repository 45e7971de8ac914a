"""Loaded models of the tasks that answer and classify."""

import json

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.cli import main
from albef_jax.config import load_config, to_json
from albef_jax.data.answers import encode_answers
from albef_jax.data.images.pillow import load_eval
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.inference.api import MODELS
from albef_jax.inference.classes import ClassModel
from albef_jax.core.optim import make_optimizer, make_schedule
from albef_jax.core.state import TrainState
from albef_jax.tasks import TASKS, make_task

ANSWERS = ["red", "a small circle", "blue", "circle and square"]


@pytest.fixture(scope="module")
def tokenizer(workdir):
    return load_tokenizer(str(workdir / "tokenizer"))


@pytest.fixture(scope="module")
def config_of(tokenizer):
    """`config_of("vqa")` -> the tiny config for a task."""
    def make(task_name):
        config = load_config("tests/tiny.py")
        config.task = task_name
        config.model.update(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
                            cls_id=tokenizer.cls_id, mask_id=tokenizer.mask_id)
        config.data.update(answer_length=8, eval_text_length=20)
        return config

    return make


@pytest.fixture(scope="module")
def vqa_run(config_of, tokenizer, tmp_path_factory):
    """A work directory with fresh weights."""
    folder, config = tmp_path_factory.mktemp("vqa") / "run", config_of("vqa")
    tokenizer.save(str(folder / "tokenizer"))
    (folder / "config.json").write_text(to_json(config))
    optimizer = make_optimizer(config.optimizer, make_schedule(config.optimizer, 10))
    state = jax.jit(lambda: TrainState.create(make_task(config), optimizer, 0))()
    checkpointer = Checkpointer(folder, config.checkpoint)
    checkpointer.save(1, state)
    checkpointer.close()
    return folder


def test_answers_are_those_of_the_task(vqa_run, scenes):
    model, image = albef_jax.load(vqa_run), scenes / "a" / "00.png"
    functions = make_task(model.config).predict_fns()
    ids, mask = model.tokenizer.encode(["what colour is the circle"], 20)
    pixels = load_eval(image.read_bytes(), 32)[None]
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


def test_what_a_task_does_not_offer(vqa_run, scenes):
    model, image = albef_jax.load(vqa_run), scenes / "a" / "00.png"
    with pytest.raises(UserError, match="task 'vqa' has no encode_image; it has answer, so load"):
        model.encode_image([image])
    with pytest.raises(UserError, match="Got 2 questions"):
        model.answer(image, ["one?", "two?"])
    with pytest.raises(UserError, match="'circle and square circle and square' has more than"):
        model.answer(image, "one?", ["red", " ".join(ANSWERS[3:] * 2)])
    assert not hasattr(model, "match")


@pytest.mark.parametrize("task_name, views, classes", [
    ("ve", 1, ["contradiction", "neutral", "entailment"]), ("nlvr", 2, ["false", "true"])])
def test_classify(config_of, tokenizer, scenes, task_name, views, classes):
    config = config_of(task_name)
    task = make_task(config)
    model = ClassModel(config, jax.jit(task.init)(jax.random.key(1)), tokenizer)
    paths = sorted((scenes / "a").glob("*.png"))[:views]
    found = model.classify(paths if views > 1 else paths[0], "A red circle.")
    ids, mask = tokenizer.encode(["a red circle"], 20)
    pixels = np.stack([load_eval(path.read_bytes(), 32) for path in paths])
    logits = jax.jit(task.predict_fns()["classify"])(
        model.params, pixels if views == 1 else pixels[None], ids, mask)
    assert list(found) == classes
    np.testing.assert_allclose(list(found.values()), jax.nn.softmax(logits[0]), atol=1e-5)
    with pytest.raises(UserError, match=f"{views + 1} image.s.; a model of the task '{task_name}'"):
        model.classify([*paths, paths[0]], "A red circle.")


def test_every_task_can_be_loaded(config_of, tokenizer):
    assert MODELS.keys() == TASKS.keys()
    model = MODELS["nlvr_pretrain"](config_of("nlvr_pretrain"), {}, tokenizer)
    with pytest.raises(UserError, match="'nlvr_pretrain' has no match; it has nothing to offer"):
        model.match("a.png", "a")
