"""Accuracy by class, of groups, and beside the most frequent class, against a plain loop."""

import json

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from albef_jax.errors import UserError
from albef_jax.evaluators.classification import is_right

COUNT = 23
SIZE = 16


@pytest.fixture
def source(tmp_path):
    """Pairs of pictures under six sentences; its block."""
    rng, rows = np.random.default_rng(0), []
    for i in range(COUNT):
        names = [f"{i}_{view}.png" for view in range(2)]
        for name in names:
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
        rows.append({"images": names, "sentence": "red " * (1 + i % 6),
                     "label": str(bool(i % 3))})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return dict(kind="nlvr", files=(str(tmp_path / "rows.json"),))


@pytest.fixture
def config(config_of):
    return config_of("nlvr")


def classify(params, image, text_ids, text_mask):
    """Whether the first picture is brighter than the second, and the length of the text."""
    means = image.astype(jnp.float32).mean(axis=(2, 3, 4)) / 255
    score = params["scale"] * (means[:, 1] - means[:, 0]) + 0.02 * (text_mask.sum(axis=1) - 4)
    return jnp.stack([-score, score], axis=1)


PARAMS = {"scale": np.float32(10)}


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_evaluator_equals_a_plain_loop(source, build, evaluate, batch_size):
    evaluator = build("classification", source, batch_size=batch_size)
    values = evaluate(evaluator, PARAMS, {"classify": classify})
    folder, right = source["files"][0].rpartition("/")[0], []
    for i in range(COUNT):
        first, second = (np.asarray(Image.open(f"{folder}/{i}_{view}.png"), np.float32).mean()
                         for view in range(2))
        score = 10 * (second - first) / 255 + 0.02 * (2 + i % 6 - 4)
        right.append((score > 0) == bool(i % 3))
    right, label, sentence = np.array(right), np.arange(COUNT) % 3 > 0, np.arange(COUNT) % 6
    assert 0 < right.sum() < COUNT
    assert values == pytest.approx({
        "accuracy": 100 * right.mean(), "majority": 100 * 15 / COUNT,
        "accuracy_true": 100 * right[label].mean(), "accuracy_false": 100 * right[~label].mean(),
        "consistency": 100 * np.mean([right[sentence == s].all() for s in range(6)])})
    assert evaluator.description == f"{COUNT} examples of 2 classes"


def test_only_the_first_examples(source, build, evaluate):
    values = evaluate(build("classification", source, max_examples=1), PARAMS,
                      {"classify": classify})
    assert values.keys() == {"accuracy", "majority", "accuracy_false", "consistency"}
    assert values["majority"] == 100


def test_equal_and_undefined_logits_are_wrong():
    logits = np.array([[1, 2, 0], [1, 1, 0], [np.nan, 2, 0], [np.nan] * 3, [3, 2, 1]], np.float32)
    np.testing.assert_array_equal(is_right(logits, np.array([1, 1, 1, 0, 1])),
                                  [True, False, False, False, False])


def test_sources_that_do_not_fit(source, make_source_block, build):
    with pytest.raises(UserError, match=r"evals.held.source has no field 'label', .* it has image"):
        build("classification", make_source_block(5))
    entailment = json.loads(open(source["files"][0]).read())
    rows = [{"image": row["images"][0], "sentence": "red", "label": "neutral"}
            for row in entailment]
    path = source["files"][0].replace("rows", "entailment")
    with open(path, "w") as file:
        json.dump(rows, file)
    with pytest.raises(UserError, match=r"tells 2 classes apart, but evals.held.source has 3 "):
        build("classification", dict(kind="ve", files=(path,)))
