"""An imported model is evaluated, loaded in Python and exported like one trained here."""

import json
from pathlib import Path

import numpy as np
import pytest

import albef_jax
from albef_jax.cli import main
from albef_jax.weights.foreign.torch_writer import write_torch_file

TESTS = Path(__file__).parents[1]
SIZES = ["vit_depth=3", "vit_heads=4", "vit_mlp_ratio=4.0", "text_layers=3", "fusion_layers=3",
         "text_heads=4", "max_positions=40"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    tensors = dict(np.load(TESTS / "golden" / "pretrain_forward" / "state_dict.npz"))
    write_torch_file(folder / "model.pth", tensors)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "circle", "square"]
    (folder / "words").mkdir()
    (folder / "words" / "vocab.txt").write_text(
        "\n".join([*words, *(f"w{i}" for i in range(100 - len(words)))]))
    flags = [f"--config.model.{size}" for size in SIZES]
    assert main(["import", str(folder / "model.pth"), "--out", str(folder / "run"),
                 "--config", f"{TESTS / 'tiny.py'}:learn",
                 "--tokenizer", str(folder / "words"), *flags]) == 0
    return folder / "run"


@pytest.mark.slow
def test_evaluate(imported):
    assert main(["evaluate", str(imported)]) == 0
    values = json.loads((imported / "results" / "dev.json").read_text())["values"]
    assert 0 <= values["r_mean"] <= 100


def test_load(imported, tmp_path):
    """From the import and from its export, with online and momentum weights."""
    folder = tmp_path / "export"
    assert main(["export", str(imported), "--format", "safetensors", "--out", str(folder)]) == 0
    features = {}
    for weights in ("online", "momentum"):
        for path in (imported, folder):
            model = albef_jax.load(path, weights=weights)
            features[weights, path] = model.encode_text(["red circle", "blue square"])
        np.testing.assert_array_equal(features[weights, imported], features[weights, folder])
        np.testing.assert_allclose(
            np.linalg.norm(features[weights, imported], axis=-1), 1, rtol=1e-6)
    assert not np.allclose(features["online", imported], features["momentum", imported])
