"""Reports of tasks with classes or answers, and the sentences for evaluators that do not fit."""

import json

from etils import epath
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from albef_jax.config import default_config
from albef_jax.data.sources import make_source
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators import check_task
from albef_jax.report import find_examples, write_page
from albef_jax.report.examples import data_uri
from albef_jax.parallel.mesh import make_mesh
from albef_jax.tasks import check_fields, make_task

LABELS = ("contradiction", "neutral", "entailment")


@pytest.fixture
def config():
    config = default_config()
    config.task = "ve"
    config.model.image_size = 16
    config.data.update(engine="pillow", workers=2, text_length=12)
    return config


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


def test_classes_on_the_page(config, tokenizer, write, tmp_path):
    source = write("ve", lambda i: {"sentence": f"word {i}", "label": LABELS[i % 3]})
    config.evals.held = dict(kind="classification", source=source, max_examples=10)

    def classify(params, image, ids, mask):  # the logit of class 1 grows with the brightness
        zeros = jnp.zeros(len(image))
        return jnp.stack([zeros, params["scale"] * (brightness(image) - 4.5), zeros], axis=1)

    params = {"scale": np.float32(0.5)}
    examples = find_examples(config, tokenizer, params, {}, {"classify": classify}, make_mesh())
    rows = [0, 1, 3, 4, 5, 6, 8, 9]  # spread over the first ten
    assert [item["text"] for item in examples["rows"]] == [f"word {row}" for row in rows]
    for item, row in zip(examples["rows"], rows, strict=True):
        logits = np.array([0, 0.5 * (row - 4.5), 0])
        shares = np.exp(logits) / np.exp(logits).sum()
        assert {choice["text"]: choice["share"] for choice in item["choices"]} == pytest.approx(
            dict(zip(LABELS, shares)), rel=1e-4)
        assert [c["right"] for c in item["choices"]].count(True) == 1
        assert item["truth"] == LABELS[row % 3]
        best = "neutral" if row > 4 else "contradiction"
        assert item["choices"][0]["text"] == best and item["hit"] == (best == item["truth"])
        assert item["pictures"] == [data_uri(Image.new("RGB", (16, 16), (20 * row,) * 3))]

    log = [{"step": 1, "loss": 1.5, "accuracy": 0.25},
           {"step": 1, "held/accuracy": 61.5, "held/majority": 34.5, "held/accuracy_neutral": 7.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    page = write_page(epath.Path(tmp_path), config, examples).read_text()
    for text in ("always the commonest: 34.5%", "accuracy: neutral", "61.5", "7.5", "word 8",
                 "dashed: all 3 classes alike", "Held-out held, %", "answered rightly"):
        assert text in page, text
    assert page.count("<svg") == 3 and "Contrastive" not in page and "Masked words" not in page


def test_answers(config, tokenizer, write):
    source = write("vqa", lambda i: {"question": f"word {i}?", "question_id": i, "dataset": "vqa",
                                     "answer": ["red", "red", "two"]})
    config.evals.held = dict(kind="vqa", source=source, k=2)

    def rank(params, states, mask, candidates, k, first_twice):
        """The longer a candidate's number the likelier; brighter pictures are surer."""
        order = jnp.arange(len(candidates[0]))[::-1][:k]
        return (jnp.broadcast_to(order, (len(states), k)),
                states[:, None] * jnp.linspace(0, -1, k)[None])

    functions = {"encode": lambda params, image, ids, mask: brightness(image), "rank": rank}
    first, *_, last = find_examples(config, tokenizer, {}, {}, functions, make_mesh())["rows"]
    assert [choice["text"] for choice in last["choices"]] == ["two", "red"]
    assert all(choice["right"] for choice in last["choices"]) and last["truth"] == "red"
    assert last["choices"][0]["share"] > 0.99 > first["choices"][0]["share"]


def test_data_that_is_gone_is_a_sentence(config, tokenizer):
    config.evals.held = dict(kind="classification", source=dict(kind="ve", files=("gone.json",)))
    examples = find_examples(config, tokenizer, {}, {}, {}, make_mesh())
    assert "gone.json cannot be read" in examples["missing"]


def test_evaluators_and_sources_of_another_task(config, write):
    source = write("ve", lambda i: {"sentence": "x", "label": "neutral"})
    config.data.source, config.model.dtype = source, "float32"
    config.evals.held = dict(kind="classification", source=source)
    check_task(config.evals, "ve", make_task(config).predict_fns())
    check_fields(config, make_source(source))
    config.evals.pairs = dict(kind="matching", source=source)
    with pytest.raises(UserError, match="evals.pairs is of kind 'matching', which config.task 've' "
                                        "cannot do; it can do 'classification'"):
        check_task(config.evals, "ve", make_task(config).predict_fns())
    config.task = "nlvr"
    with pytest.raises(UserError, match=r"looks at 2 image\(s\) per text, but .* 've' has 1"):
        check_fields(config, make_source(source))


def test_sources_with_other_classes(config, write):
    class Source(type(make_source(write("ve", lambda i: {"sentence": "x", "label": "neutral"})))):
        class_names = ("no", "yes")

    config.data.source = write("ve", lambda i: {"sentence": "x", "label": "neutral"})
    with pytest.raises(UserError, match=r"tells 3 classes apart, but .* has 2 \(no, yes\)"):
        check_fields(config, Source(config.data.source.files))
