"""BERT weights: every spelling of the names, and everything that does not fit.

The real MiniLM is in tests/test_parity.py.
"""

import json
import shutil

from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from albef_jax.config import load_config
from albef_jax.core.build import build
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh
from albef_jax.run.checkpoint import Checkpointer
from albef_jax.run.stages import RunStage
from albef_jax.tasks import make_task
from albef_jax.train import initial_state
from albef_jax.weights import pretrained
from albef_jax.weights.foreign.torch_writer import write_torch_file
from foreign_bert import SETTINGS, hugging_face


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red circle is above a blue square"], 100)


def tiny_config(tokenizer, *overrides):
    return load_config("tests/tiny.py", [f"--config.{override}" for override in (
        f"model.vocab_size={tokenizer.vocab_size}", *overrides)])


@pytest.fixture(scope="module")
def fresh(tokenizer):
    return jax.jit(make_task(tiny_config(tokenizer)).init)(jax.random.key(0))


@pytest.fixture
def give(tmp_path, tokenizer, fresh):
    """`give(tensors)` writes a model folder; -> params and report of a tiny run that starts so."""
    def make(tensors, *overrides, settings=SETTINGS, words=tokenizer):
        folder = tmp_path / "bert"
        folder.mkdir(exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()},
                  folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(settings))
        words.save(str(folder))
        config = tiny_config(tokenizer, f"init.bert={folder}", *overrides)
        params, report = pretrained.apply(config, fresh, tokenizer)
        return flatten_dict(params), report, flatten_dict(fresh)

    return make


@pytest.fixture
def tensors(tokenizer):
    return hugging_face(tokenizer.vocab_size)


def in_our_layout(tensors, source, ours):
    """Hugging Face layer -> what our layer must hold, by path; written out, not by a table."""
    def kernel(*names):
        return np.concatenate([tensors[f"{source}.{name}.weight"].T for name in names], axis=1)

    def bias(*names):
        return np.concatenate([tensors[f"{source}.{name}.bias"] for name in names])

    qkv = [f"attention.self.{part}" for part in ("query", "key", "value")]
    expected = {("attention", "norm", "scale"):
                tensors[f"{source}.attention.output.LayerNorm.weight"],
                ("attention", "norm", "bias"): bias("attention.output.LayerNorm"),
                ("ffn", "norm", "scale"): tensors[f"{source}.output.LayerNorm.weight"],
                ("ffn", "norm", "bias"): bias("output.LayerNorm")}
    for path, names in ((("attention", "qkv", "dense"), qkv),
                        (("attention", "output"), ["attention.output.dense"]),
                        (("ffn", "mlp", "fc1"), ["intermediate.dense"]),
                        (("ffn", "mlp", "fc2"), ["output.dense"])):
        expected |= {(*path, "kernel"): kernel(*names), (*path, "bias"): bias(*names)}
    return {("text_encoder", ours, *path): value for path, value in expected.items()}


def test_every_tensor_goes_where_it_belongs(give, tensors):
    params, report, fresh = give(tensors)
    expected = in_our_layout(tensors, "bert.encoder.layer.0", "text_0")
    expected |= in_our_layout(tensors, "bert.encoder.layer.1", "fusion_0")
    for ours, theirs in {
        "embeddings/word": "bert.embeddings.word_embeddings.weight",
        "embeddings/position": "bert.embeddings.position_embeddings.weight",
        "embeddings/token_type": "bert.embeddings.token_type_embeddings.weight",
        "embeddings/norm/scale": "bert.embeddings.LayerNorm.weight",
        "embeddings/norm/bias": "bert.embeddings.LayerNorm.bias",
        "head/norm/scale": "cls.predictions.transform.LayerNorm.weight",
        "head/norm/bias": "cls.predictions.transform.LayerNorm.bias",
        "head/dense/bias": "cls.predictions.transform.dense.bias",
        "head/bias": "cls.predictions.bias",
    }.items():
        expected["text_encoder", *ours.split("/")] = tensors[theirs]
    expected["text_encoder", "head", "dense", "kernel"] = (
        tensors["cls.predictions.transform.dense.weight"].T)
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value, str(path))
    rest = {path for path in params if path not in expected}
    assert {path[:3] for path in rest if path[0] == "text_encoder"} == {
        ("text_encoder", "fusion_0", "cross")}
    for path in rest:
        np.testing.assert_array_equal(params[path], fresh[path])
    for words in ("positions are counted", "no pooler", "no next-sentence task",
                  "tied to bert.embeddings.word_embeddings.weight", "BERT has no cross-attention"):
        assert words in report


def without_prefix(name):
    return name.removeprefix("bert.")


def old_norms(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("rename", [without_prefix, old_norms])
def test_other_spellings(give, tensors, rename):
    expected, _, _ = give(tensors)
    found, _, _ = give({rename(name): array for name, array in tensors.items()})
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], str(path))


def test_a_file_without_a_head(give, tokenizer):
    bare = hugging_face(tokenizer.vocab_size, head=False)
    params, report, fresh = give({without_prefix(name): array for name, array in bare.items()})
    path = ("text_encoder", "head", "dense", "kernel")
    np.testing.assert_array_equal(params[path], fresh[path])
    assert "the file has no MLM head" in report


def test_a_torch_file(give, tensors, tokenizer, fresh, tmp_path):
    expected, _, _ = give(tensors)
    (tmp_path / "bert" / "model.safetensors").unlink()
    write_torch_file(tmp_path / "bert" / "pytorch_model.bin", tensors, wrapper="")
    config = tiny_config(tokenizer, f"init.bert={tmp_path / 'bert'}")
    found = flatten_dict(pretrained.apply(config, fresh, tokenizer)[0])
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], str(path))


def apply_folder(folder, tokenizer, fresh, *overrides):
    config = tiny_config(tokenizer, f"init.bert={folder}", *overrides)
    params, report = pretrained.apply(config, fresh, tokenizer)
    return flatten_dict(params), report


@pytest.mark.parametrize("form", ["prefix", "safetensors", "bin"])
def test_prefixes_and_weights_in_parts(give, tensors, tokenizer, fresh, tmp_path, form):
    expected, _, _ = give(tensors)
    folder = tmp_path / "bert"
    (folder / "model.safetensors").unlink()
    if form == "prefix":
        save_file({f"module.{name}": np.ascontiguousarray(array)
                   for name, array in tensors.items()}, folder / "model.safetensors")
    else:
        whole = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
        stem, _, ending = whole.rpartition(".")
        names, places = list(tensors), {}
        for part in (1, 2):
            file = f"{stem}-0000{part}-of-00002.{ending}"
            own = {name: np.ascontiguousarray(tensors[name]) for name in names[part - 1::2]}
            places |= dict.fromkeys(own, file)
            (save_file(own, folder / file) if form == "safetensors"
             else write_torch_file(folder / file, own))
        index = folder / f"{whole}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found, _ = apply_folder(folder, tokenizer, fresh)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
    if form == "safetensors":
        for text, words in (("[]", "is no index of weights"), ('{"weight_map": 3}', "is no index"),
                            (json.dumps({"weight_map": places | {"x": file}}), "names x, which"),
                            (json.dumps({"weight_map": {"x": "../x.bin"}}), "outside its folder")):
            index.write_text(text)
            with pytest.raises(UserError, match=words):
                apply_folder(folder, tokenizer, fresh)


def test_heads_of_other_tasks_are_left_out_and_said(give, tensors):
    expected, _, _ = give(tensors)
    heads = {f"{name}.{leaf}": np.ones(2, np.float32) for name in ("classifier", "qa_outputs")
             for leaf in ("weight", "bias")}
    found, report, _ = give(tensors | heads)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
    assert "the head of another task" in report


def test_an_untied_decoder_is_refused_or_left_out(give, tensors):
    untied = tensors | {"cls.predictions.decoder.weight": np.ones_like(
        tensors["bert.embeddings.word_embeddings.weight"])}
    with pytest.raises(UserError, match="init.bert_tie=True takes the latter for both"):
        give(untied)
    found, report, _ = give(untied, "init.bert_tie=True")
    assert "is taken instead" in report
    for path, value in give(tensors)[0].items():
        np.testing.assert_array_equal(found[path], value)


def test_chosen_layers(give, tokenizer):
    deep = hugging_face(tokenizer.vocab_size, layers=4)
    with pytest.raises(UserError) as error:
        give(deep)
    assert "has 4 layers and the model 2" in str(error.value)
    params, report, fresh = give(deep, "init.bert_layers=(3,-1)")
    for path, value in in_our_layout(deep, "bert.encoder.layer.3", "text_0").items():
        np.testing.assert_array_equal(params[path], value)
    path = ("text_encoder", "fusion_0", "attention", "qkv", "dense", "kernel")
    np.testing.assert_array_equal(params[path], fresh[path])
    assert "init.bert_layers says -1" in report and "not in init.bert_layers" in report
    for chosen in ("(0,4)", "(0,)", "(0,1,2)", "(-2,0)"):
        with pytest.raises(UserError) as error:
            give(deep, f"init.bert_layers={chosen}")
        assert "it must say which of" in str(error.value)


def test_half_precision_is_converted(give, tensors):
    half = {name: array if name.endswith("ids") else array.astype(np.float16)
            for name, array in tensors.items()}
    params, _, _ = give(half)
    word = params["text_encoder", "embeddings", "word"]
    assert word.dtype == np.float32
    np.testing.assert_array_equal(word, half["bert.embeddings.word_embeddings.weight"])


def test_weights_that_do_not_fit(give, tensors):
    query, pooler = "bert.encoder.layer.1.attention.self.query.weight", "bert.pooler.dense.bias"

    def fails(changed, *words, **options):
        with pytest.raises(UserError) as error:
            give({name: array for name, array in (tensors | changed).items() if array is not None},
                 **options)
        assert all(word in str(error.value) for word in words), error.value

    fails({query: None}, "1 missing", query)
    fails({pooler.replace("dense", "extra"): None, "bert.adapter.weight": np.zeros(3)},
          "1 unknown", "bert.adapter.weight")
    fails({query: tensors[query][:16]}, query, "has shape [16, 32], not [32, 32]")
    fails({query: tensors[query].astype(np.float64)}, query, "float64")
    fails({query: np.full((32, 32), np.nan, np.float32)}, query, "NaN")
    fails({"cls.predictions.decoder.weight": tensors["cls.predictions.decoder.weight"] + 1},
          "cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings.weight")
    fails({"bert.embeddings.token_type_embeddings.weight": np.zeros((1, 32), np.float32)},
          "has shape [1, 32], not [2, 32]")
    fails({"bert.embeddings.position_embeddings.weight": np.zeros((512, 32), np.float32)},
          "model.max_positions=512 (here 32)")
    fails({}, "model.text_heads=4 (here 2)", settings=SETTINGS | {"num_attention_heads": 4})
    fails({}, "model_type is 'roberta'", settings=SETTINGS | {"model_type": "roberta"})
    fails({}, "hidden_act is 'relu'", settings=SETTINGS | {"hidden_act": "relu"})
    other = train_tokenizer(["a red circle is above a blue squash"], 100)
    fails({}, "another vocabulary", "data.tokenizer", words=other)


def test_a_run_starts_from_the_weights_and_resumes_without_them(give, tensors, tokenizer, tmp_path):
    expected, _, _ = give(tensors)

    def start(bert):
        config = tiny_config(tokenizer, f"init.bert={bert}")
        checkpointer = Checkpointer(tmp_path / "run", config.checkpoint)
        parts = build(config, make_mesh())
        stage = RunStage("", config, 0, config.steps, None, parts)
        state, step = initial_state([stage], checkpointer, tokenizer)
        if step == 0:
            checkpointer.save(3, state)
        checkpointer.close()
        return flatten_dict(state.params), flatten_dict(state.teacher), step

    for bert, at in ((tmp_path / "bert", 0), ("gone", 3)):  # a resumed run has its own
        params, teacher, step = start(bert)
        assert step == at
        for path in (p for p in expected if p[0] == "text_encoder" and "cross" not in p):
            np.testing.assert_array_equal(params[path], expected[path], str(path))
        for path, leaf in teacher.items():
            np.testing.assert_array_equal(leaf, params[path], str(path))
            # The state is donated, and one buffer cannot be donated twice.
            assert leaf.unsafe_buffer_pointer() != params[path].unsafe_buffer_pointer()


def test_names_that_lead_nowhere(tokenizer, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def fails(name, words):
        with pytest.raises(UserError) as error:
            pretrained.apply(tiny_config(tokenizer, f"init.bert={name}"), fresh, tokenizer)
        assert words in str(error.value)

    fails(tmp_path, "holds neither model.safetensors nor pytorch_model.bin")
    fails("nobody/nothing", "neither a file, nor a folder, nor a name that the Hugging Face hub")
    fails(tmp_path / "gone" / "away", "neither a file, nor a folder")
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    (tmp_path / "config.json").write_text("{")
    fails(tmp_path, "model.safetensors")
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    fails(tmp_path, "config.json is not valid JSON")


def test_a_name_on_the_hub(give, tensors, tokenizer, fresh, tmp_path, monkeypatch):
    """Here from the cache that an earlier download has filled."""
    expected, _, _ = give(tensors)
    snapshot = tmp_path / "hub" / "models--someone--bert" / "snapshots" / "abc"
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    shutil.copytree(tmp_path / "bert", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    config = tiny_config(tokenizer, "init.bert=someone/bert")
    params, report = pretrained.apply(config, fresh, tokenizer)
    assert report.startswith("someone/bert -> text_encoder")
    found = flatten_dict(params)
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], str(path))


def test_titles_and_tables_of_products(give, tensors, tokenizer, tmp_path):
    """SCALE's title has BERT's layers and words; a table with its own begins with the same."""
    give(tensors)  # writes the folder
    config = load_config("tests/tiny_scale.py", [f"--config.{override}" for override in (
        f"init.bert={tmp_path / 'bert'}", f"model.vocab_size={tokenizer.vocab_size}",
        "model.width=32", "model.layers=2", "model.text_mlp_width=64", "model.max_positions=32",
        "model.table_embeddings=own")])
    fresh = jax.jit(make_task(config).init)(jax.random.key(0))
    params, report = pretrained.apply(config, fresh, tokenizer)
    words = tensors["bert.embeddings.word_embeddings.weight"]
    for name in ("title", "table"):
        np.testing.assert_array_equal(params[f"embeddings_{name}"]["word"], words)
        for layer in (0, 1):
            ours = flatten_dict(params[f"encoders_{name}_{layer}"])
            for path, value in in_our_layout(tensors, f"bert.encoder.layer.{layer}", "").items():
                np.testing.assert_array_equal(ours[path[2:]], value)
    np.testing.assert_array_equal(params["masked_heads_words"]["bias"],
                                  tensors["cls.predictions.bias"])
    assert " 0 fresh" in report
    for name in ("encoders_regions_0", "jct_0", "embeddings_video"):
        assert params[name] is fresh[name]
