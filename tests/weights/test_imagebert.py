"""ImageBERT from BERT weights, and fine-tuning from a pre-training: what goes where, strictly."""

import json
from pathlib import Path

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from albef_jax.config import load_config
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.tasks import make_task
from albef_jax.weights import pretrained
from foreign_bert import SETTINGS, hugging_face

TINY = Path(__file__).parents[1] / "tiny_imagebert.py"


@pytest.fixture
def tokenizer():
    return train_tokenizer(["a red circle is above a blue square"], 100)


def start(variant, folder, tokenizer, tensors, **overrides):
    """The parameters of a run that starts from a BERT, and the report."""
    (folder / "bert").mkdir(exist_ok=True)
    save_file(tensors, folder / "bert" / "model.safetensors")
    (folder / "bert" / "config.json").write_text(json.dumps(SETTINGS))
    config = load_config(f"{TINY}:{variant}", [
        f"--config.init.bert={folder / 'bert'}",
        *(f"--config.{name}={value}" for name, value in overrides.items())]).unlock()
    config.model.vocab_size = tokenizer.vocab_size
    params = make_task(config.lock()).init(jax.random.key(0))
    filled, report = pretrained.apply(config, params, tokenizer)
    return flatten_dict(params), flatten_dict(filled), report


@pytest.mark.parametrize("variant", ["", "retrieval"])
def test_everything_of_bert_is_read(variant, tokenizer, tmp_path):
    tensors = hugging_face(tokenizer.vocab_size)
    fresh, filled, report = start(variant, tmp_path, tokenizer, tensors)
    for path, leaf in filled.items():
        same = np.array_equal(leaf, fresh[path])
        assert same == (path[0] != "bert"), path
    word = tensors["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(filled["bert", "embeddings", "word"], word)
    query = tensors["bert.encoder.layer.1.attention.self.query.weight"]
    np.testing.assert_array_equal(
        filled["bert", "text_1", "attention", "qkv", "dense", "kernel"][:, :32], query.T)
    assert ("the task predicts no words" in report) == (variant == "retrieval")
    assert ("bert", "head", "bias") in filled or variant == "retrieval"


def test_a_bert_of_another_size_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="has 3 layers and the model 2"):
        start("", tmp_path, tokenizer, hugging_face(tokenizer.vocab_size, layers=3))
    with pytest.raises(UserError, match="model.text_mlp_width=64 .here 48"):
        start("", tmp_path, tokenizer, hugging_face(tokenizer.vocab_size),
              **{"model.text_mlp_width": 48})


def test_chosen_layers(tokenizer, tmp_path):
    tensors = hugging_face(tokenizer.vocab_size, layers=3)
    fresh, filled, report = start("", tmp_path, tokenizer, tensors,
                                  **{"init.bert_layers": "(2, -1)"})
    name = ("ffn", "mlp", "fc1", "bias")
    np.testing.assert_array_equal(filled["bert", "text_0", *name],
                                  tensors["bert.encoder.layer.2.intermediate.dense.bias"])
    np.testing.assert_array_equal(filled["bert", "text_1", *name], fresh["bert", "text_1", *name])
    assert "init.bert_layers says -1" in report
