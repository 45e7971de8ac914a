"""`albef export --format jax`: the same numbers in a process that knows nothing of this package."""

import subprocess
import sys

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.weights.export import export

STRANGER = """
import sys
import numpy as np
from jax import export
from safetensors.numpy import load_file

folder, given, found = sys.argv[1:]
arrays, results = np.load(given), {}
weights = load_file(f"{folder}/weights.safetensors")

def call(name, *wanted):
    function = export.deserialize(open(f"{folder}/{name}.jaxexport", "rb").read())
    return function.call(weights, *wanted)

if "answer_ids" in arrays:
    states = call("encode", arrays["image"], arrays["text_ids"], arrays["text_mask"])
    results["rank"], results["scores"] = call(
        "rank", states, arrays["text_mask"], arrays["answer_ids"], arrays["answer_mask"])
else:
    image, results["image"] = call("encode_image", arrays["image"])
    text, results["text"] = call("encode_text", arrays["text_ids"], arrays["text_mask"])
    results["match"] = call("match", image[:2], text[:2], arrays["text_mask"][:2])
np.savez(found, **results)
assert not any(name.startswith("albef") for name in sys.modules)
"""


def run_stranger(folder, tmp_path, arrays):
    np.savez(tmp_path / "given.npz", **arrays)
    subprocess.run([sys.executable, "-c", STRANGER, folder, tmp_path / "given.npz",
                    tmp_path / "found.npz"], check=True, cwd=tmp_path)
    return np.load(tmp_path / "found.npz")


def inputs(config, rows, seed=0):
    rng = np.random.default_rng(seed)
    length = config.data.eval_text_length or config.data.text_length
    mask = (np.arange(length) < rng.integers(3, length, (rows, 1))).astype(np.int32)
    return {"image": rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
            "text_ids": mask * rng.integers(5, 90, mask.shape).astype(np.int32),
            "text_mask": mask}


def test_encoders_and_matching_head(workdir, tmp_path):
    export(workdir, tmp_path / "out", "jax")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"encode_image.jaxexport", "encode_text.jaxexport", "match.jaxexport",
                     "weights.safetensors", "config.json", "README.md", "tokenizer"}
    model = albef_jax.load(workdir)
    arrays = inputs(model.config, 3)
    found = run_stranger(tmp_path / "out", tmp_path, arrays)
    functions, params = model.forward, model.params
    image, image_feat = functions["encode_image"](params, arrays["image"])
    text, text_feat = functions["encode_text"](params, arrays["text_ids"], arrays["text_mask"])
    match = functions["match"](params, image[:2], text[:2], arrays["text_mask"][:2])
    for name, wanted in (("image", image_feat), ("text", text_feat), ("match", match)):
        np.testing.assert_allclose(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_answers(config_of, saved, tmp_path):
    run = saved(config_of("vqa"), tmp_path / "run")
    export(run, tmp_path / "out", "jax")
    model = albef_jax.load(run)
    arrays = inputs(model.config, 2)
    answers = inputs(model.config, 12, seed=1)
    length = model.config.data.answer_length
    answers = {f"answer_{key}": answers[f"text_{key}"][:, :length] for key in ("ids", "mask")}
    found = run_stranger(tmp_path / "out", tmp_path, arrays | answers)
    states = model.forward["encode"](model.params, *arrays.values())
    rank = jax.jit(model.forward["rank"], static_argnums=(4, 5))
    best, scores = rank(model.params, states, arrays["text_mask"],
                        tuple(answers.values()), 8, True)
    np.testing.assert_array_equal(found["rank"], best)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5, rtol=1e-5)


def test_a_task_that_has_none_is_one_sentence(albef, tmp_path, saved):
    from albef_jax.config import load_config

    run = saved(load_config("tests/tiny_scale.py:scale_pretrain"), tmp_path / "run")
    code, _, err = albef("export", run, "--format", "jax", "--out", tmp_path / "out")
    assert code == 2 and "has no functions that --format jax writes" in err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_every_platform_is_in_the_file(workdir, tmp_path, platform):
    export(workdir, tmp_path / "out", "jax")
    file = (tmp_path / "out" / "match.jaxexport").read_bytes()
    assert platform in jax.export.deserialize(bytearray(file)).platforms
