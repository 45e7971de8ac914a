"""Import and export of the published kinds at tiny sizes: strict, and bit-exact both ways."""

import json
from pathlib import Path
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from albef_jax.cli import main
from albef_jax.config import default_config, load_config
from albef_jax.errors import UserError
from albef_jax.models.resample import resize_positions
from albef_jax.weights.export import export
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.foreign.torch_file import read_metadata, read_tensors
from albef_jax.weights.foreign.torch_writer import write_torch_file
from albef_jax.weights.importer import REPORT_FILE, fitted_config, import_file
from albef_jax.weights.stored import read_stored

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = Path(__file__).parents[1] / "tiny.py"


FOLDERS = {"pretrain": "pretrain_forward",
           **dict.fromkeys(("scale_pretrain", "scale_classify"), "scale_forward"),
           **dict.fromkeys(("imagebert_pretrain", "imagebert_retrieval"),
                           "imagebert/pretrain_forward")}
UNUSED = {"imagebert_retrieval": ("cls.", "moc_head.", "mrfr_head.")}  # what it need not have


def tensors_of(kind):
    """A tiny official state dict."""
    tensors = dict(np.load(GOLDEN / FOLDERS.get(kind, kind) / "state_dict.npz"))
    if kind == "scale_classify":
        tensors |= dict(np.load(GOLDEN / kind / "head.npz"))
    return {name: array for name, array in tensors.items()
            if not name.startswith(UNUSED.get(kind, ("-",)))}


def config_for(kind):
    """What tensors do not tell: of SCALE, how long its inputs are; None for the others."""
    if not kind.startswith("scale_"):
        return None
    config = KINDS[kind].fresh_config()
    found, _ = KINDS[kind].sizes(tensors_of(kind), kind)
    for name, value in found.items():
        config["model" if name in config.model else "data"][name] = value
    config.data.update(text_length=8, table_length=10, regions_length=5, video_length=4,
                       audio_length=6)
    return config


@pytest.fixture
def saved(tmp_path):
    """`saved(kind, name=array or None)` -> a .pth with that state dict, changed."""
    def save(kind, **changes):
        tensors = tensors_of(kind) | changes
        path = tmp_path / f"{kind}.pth"
        write_torch_file(path, {k: v for k, v in tensors.items() if v is not None})
        return path

    return save


def equal(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype and array.shape == other[name].shape, name
        np.testing.assert_array_equal(array, other[name])


def keys_of(config):
    return {block: set(config[block]) for block in ("model", "objective", "data", "init")}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind, saved, tmp_path):
    config, layout = config_for(kind), KINDS[kind].layout
    report = import_file(saved(kind), tmp_path / "first", heads=4, config=config)
    assert (tmp_path / "first" / REPORT_FILE).read_text() == f"{report}\n"
    stored = read_stored(tmp_path / "first")
    assert stored.config.task == kind and stored.config.model.text_heads == 4
    assert keys_of(stored.config) == keys_of(default_config(kind))

    export(tmp_path / "first", tmp_path / "out.pth", layout)
    equal(dict(read_tensors(tmp_path / "out.pth")), tensors_of(kind))
    import_file(tmp_path / "out.pth", tmp_path / "second", heads=4, config=config)
    equal(read_stored(tmp_path / "second").leaves, stored.leaves)

    export(tmp_path / "first", tmp_path / "folder", "safetensors")
    import_file(tmp_path / "folder", tmp_path / "third")
    for path in ("third", "folder", "folder/model.safetensors"):
        again = read_stored(tmp_path / path)
        equal(again.leaves, stored.leaves)
        assert again.config.to_dict() == stored.config.to_dict()
    card = (tmp_path / "folder" / "README.md").read_text()
    assert f"task `{kind}`" in card and (tmp_path / "folder" / "config.json").exists()
    assert "| `text_heads` | 4 |" in card and "| `dtype` | bfloat16 |" in card


def test_heads_that_fine_tuning_does_not_read(saved, tmp_path):
    """They are listed, kept beside the import, and come out of an export again."""
    path, run = saved("imagebert_pretrain"), tmp_path / "run"
    report = import_file(path, run, kind="imagebert_retrieval", heads=4)
    assert "a head of pre-training" in str(report)
    names = {name for _, name, *_ in read_stored(run).leaves}
    assert "itm_head" in names and not names & {"moc_head", "mrfr_head"}
    export(run, tmp_path / "out.pth", "imagebert")
    equal(dict(read_tensors(tmp_path / "out.pth")), tensors_of("imagebert_pretrain"))
    with pytest.raises(UserError, match="imagebert_retrieval.*--format imagebert"):
        export(run, tmp_path / "other.pth", "salesforce")


def test_momentum_in_the_place_of_online(saved, tmp_path):
    import_file(saved("retrieval"), tmp_path / "run", heads=4)
    export(tmp_path / "run", tmp_path / "m.pth", "salesforce", weights="momentum")
    tensors, written = tensors_of("retrieval"), read_tensors(tmp_path / "m.pth")
    assert written.keys() == tensors.keys()
    for name, array in written.items():
        part, _, rest = name.partition(".")
        momentum = f"{part}_m.{rest}"
        np.testing.assert_array_equal(array, tensors[momentum if momentum in tensors else name])
    import_file(saved("nlvr_pretrain"), tmp_path / "ta", heads=4)
    with pytest.raises(UserError, match="has no momentum weights; use --weights online"):
        export(tmp_path / "ta", tmp_path / "x.pth", "salesforce", weights="momentum")


def test_queues_of_no_length(saved, tmp_path):
    empty = np.zeros((16, 0), np.float32)
    path = saved("pretrain", image_queue=empty, text_queue=empty, queue_ptr=np.zeros(1, int))
    import_file(path, tmp_path / "run", heads=4)
    assert read_stored(tmp_path / "run").config.objective.queue_size == 0
    export(tmp_path / "run", tmp_path / "out.pth", "salesforce")
    assert read_tensors(tmp_path / "out.pth")["text_queue"].shape == (16, 0)


def test_bare_state_dicts_and_half_precision(tmp_path):
    import ml_dtypes

    tensors = {name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
               for name, array in tensors_of("ve").items()}
    write_torch_file(tmp_path / "ve.pth", tensors, wrapper="")
    import_file(tmp_path / "ve.pth", tmp_path / "run", heads=4)
    export(tmp_path / "run", tmp_path / "out.pth", "salesforce")
    equal(dict(read_tensors(tmp_path / "out.pth")), tensors_of("ve"))  # they fit bfloat16


POSITIONS = "text_encoder.bert.embeddings.position_ids"
TIED = "text_encoder.cls.predictions.decoder.weight"


@pytest.mark.parametrize("changes, match", [
    ({"extra.weight": np.ones(3, np.float32)}, r"1 unknown \(extra.weight\)"),
    ({"itm_head.bias": None}, r"1 missing \(itm_head.bias\)"),
    ({"itm_head.bias": np.ones(3, np.float32)}, r"itm_head.bias has shape \[3\], not \[2\]"),
    ({"itm_head.bias": np.ones(2, np.float64)}, "itm_head.bias is float64"),
    ({"itm_head.bias": np.array([1, np.nan], np.float32)}, "itm_head.bias holds NaN"),
    ({"visual_encoder_m.norm.bias": None}, r"missing \(visual_encoder_m.norm.bias\)"),
    ({"text_queue": None}, r"missing \(text_queue\)"),
    ({"image_queue": None}, r"missing \(image_queue\)"),
    ({"image_queue": None, "text_queue": None}, "image_queue is missing, text_queue is missing"),
    ({"image_queue": np.zeros((16, 0), np.float32)}, r"image_queue has shape \[16, 0\], not"),
    ({"image_queue": np.array(1, np.float32)}, r"image_queue has shape \[\], not"),
    ({"queue_ptr": np.array([2**40])}, "queue_ptr has values beyond int32"),
    ({TIED: np.ones((100, 32), np.float32)}, f"{TIED} differs from text_encoder.bert"),
    ({POSITIONS: np.zeros((1, 40), int)}, f"{POSITIONS} is not 0, 1, 2"),
    ({"visual_encoder.pos_embed": np.zeros((1, 12, 32), np.float32)}, "11 position embeddings"),
    ({"visual_encoder.patch_embed.proj.weight": None}, "is missing; choose another kind"),
])
def test_strict(saved, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        import_file(saved("pretrain", **changes), tmp_path / "run", heads=4)
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("*unfinished*"))


def test_second_names_may_be_absent(saved, tmp_path):
    import_file(saved("pretrain", **{TIED: None, POSITIONS: None}), tmp_path / "run", heads=4)
    export(tmp_path / "run", tmp_path / "out.pth", "salesforce")
    equal(dict(read_tensors(tmp_path / "out.pth")), tensors_of("pretrain"))


def test_which_kind(saved, tmp_path, monkeypatch):
    path = saved("retrieval", idx_queue=None)
    with pytest.raises(UserError, match="say which with --as KIND"):
        import_file(path, tmp_path / "run", heads=4)
    with pytest.raises(UserError, match=r"missing \(idx_queue\)"):
        import_file(path, tmp_path / "run", kind="retrieval", heads=4)
    with pytest.raises(UserError, match="'vaq' is no kind of published weights"):
        import_file(path, tmp_path / "run", kind="vaq")
    with pytest.raises(UserError, match="does not fit --as pretrain"):
        import_file(path, tmp_path / "run", kind="pretrain")
    write_torch_file(tmp_path / "other.pth", {"conv1.weight": np.ones(3, np.float32)})
    with pytest.raises(UserError, match="no checkpoint of ALBEF, SCALE or ImageBERT"):
        import_file(tmp_path / "other.pth", tmp_path / "run")


def test_heads(saved, tmp_path):
    with pytest.raises(UserError, match="vit_width of 32, which 12 heads do not divide"):
        import_file(saved("pretrain"), tmp_path / "run")


def test_another_resolution(saved, tmp_path):
    report = import_file(saved("retrieval"), tmp_path / "run", heads=4, image_size=48)
    for part in ("params", "teacher"):
        assert (f"interpolated: {part}/visual_encoder/pos_embed from 32 px to 48 px"
                in str(report))
    stored, tensors = read_stored(tmp_path / "run"), tensors_of("retrieval")
    assert stored.config.model.image_size == 48
    np.testing.assert_array_equal(
        stored.leaves["teacher", "visual_encoder", "pos_embed"],
        resize_positions(tensors["visual_encoder_m.pos_embed"], 6))
    with pytest.raises(UserError, match="not a multiple of the patch size 8; choose 40"):
        import_file(saved("retrieval"), tmp_path / "other", heads=4, image_size=44)


def test_a_config_gives_what_no_tensor_shows(saved, tmp_path):
    config = load_config(TINY, [f"--config.model.{value}" for value in (
        "vit_width=24", "vit_depth=2", "vit_heads=6", "vit_mlp_ratio=4.0", "text_width=24",
        "text_layers=2", "fusion_layers=2", "text_heads=3", "text_mlp_width=48",
        "max_positions=40", "image_size=64")])
    import_file(saved("retrieval"), tmp_path / "run", config=config)
    stored = read_stored(tmp_path / "run").config
    model = stored.model
    assert (model.vit_heads, model.text_heads, model.image_size) == (6, 3, 64)
    assert model.init_std == config.model.init_std and stored.steps == config.steps
    assert stored.task == "retrieval" and keys_of(stored) == keys_of(default_config("retrieval"))
    assert stored.objective.alpha_ramp_steps == 20 and "mask_rate" not in stored.objective
    config = load_config(TINY, ["--config.model.text_layers=2"])
    with pytest.raises(UserError, match="model.vit_width is 32, but 24 there"):
        import_file(saved("retrieval"), tmp_path / "other", config=config)


def test_tokenizers(saved, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words))
    import_file(saved("ve"), tmp_path / "run", heads=4, tokenizer=tmp_path / "words")
    stored = read_stored(tmp_path / "run")
    assert stored.tokenizer and stored.config.model.mask_id == 4
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words[:90]))
    with pytest.raises(UserError, match="has 90 words, but .* has 100 word embeddings"):
        import_file(saved("ve"), tmp_path / "other", heads=4, tokenizer=tmp_path / "words")


def test_nothing_is_overwritten_or_left_half(saved, tmp_path):
    path = saved("ve")
    (tmp_path / "run.unfinished").mkdir()  # what a killed import leaves
    import_file(path, tmp_path / "run", heads=4)
    assert not (tmp_path / "run.unfinished").exists()
    with pytest.raises(UserError, match="run exists; give a work directory that does not"):
        import_file(path, tmp_path / "run", heads=4)
    with pytest.raises(UserError, match="exists; give a new path"):
        export(tmp_path / "run", path, "salesforce")
    with pytest.raises(UserError, match="cannot be written"):
        import_file(path, path / "run", heads=4)


def test_commands(saved, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["import", str(saved("nlvr")), "--out", str(run), "--heads", "4"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"text_encoder.encoder.layer.2-5 +96  -> params/text_encoder/fusion_0-3",
                     printed.out)
    assert "has no tokenizer" in printed.err
    assert main(["export", str(run), "--format", "salesforce",
                 "--out", str(tmp_path / "o.pth")]) == 0
    assert "278 parameters filled" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["task"] == "nlvr"
    assert main(["evaluate", str(run)]) == 2
    assert main(["import", str(tmp_path / "absent.pth"), "--out", str(tmp_path / "x")]) == 2
    assert main(["import", "a.pth", "--out", "b", "--config.steps=3"]) == 2


@pytest.mark.parametrize("kind, lengths", [
    ("pretrain", (25, 0, 0)), ("retrieval", (40, 30, 0)), ("vqa", (25, 64, 50)), ("ve", (40, 0, 0)),
    ("nlvr", (48, 0, 0)), ("nlvr_pretrain", (25, 0, 0))])
def test_a_kind_reads_texts_as_its_public_code_does(kind, lengths):
    """As far as the model has positions."""
    found, queue = KINDS[kind].sizes(tensors_of(kind), kind)
    for positions in (512, 30):
        config = fitted_config(None, KINDS[kind], found | {"max_positions": positions}, queue, 2,
                               "file")
        data = config.data
        assert (data.text_length, data.eval_text_length, data.eval_max_words) == (
            *(min(length, positions) for length in lengths[:2]), lengths[2])


def test_the_published_configs_read_texts_as_the_kinds_do():
    for name, kind in (("ve", "ve"), ("nlvr", "nlvr"), ("vqa", "vqa"),
                       ("retrieval_coco", "retrieval"), ("retrieval_flickr30k", "retrieval")):
        data, ours = load_config(f"configs/{name}.py").data, KINDS[kind].fresh_config().data
        for key in ("text_length", "eval_text_length", "max_words", "eval_max_words"):
            assert data[key] == ours[key], (name, key)


def changed(config, **values):
    """The metadata of an export with values of the config changed, as text."""
    config = json.loads(config)
    config["model"].update(values)
    return json.dumps(config)


@pytest.mark.parametrize("damage, words", [
    (lambda config: None, "holds no config of a model .'config'"),
    (lambda config: "", "holds no config"), (lambda config: "[]", "names no task"),
    (lambda config: "5", "names no task"), (lambda config: '{"task": ', "holds no config"),
    (lambda config: '{"task": "pretrain", "model": 3}', "its model is 3"),
    (lambda config: '{"task": "unheard of"}', "unheard of"),
    (lambda config: changed(config, vit_width="wide"), "vit_width.*wide"),
    (lambda config: changed(config, vit_depth=10**6), "config.model.vit_depth is 1000000"),
    (lambda config: changed(config, vit_depth=1000), "has 1000 layers, but holds"),
    (lambda config: changed(config, vit_width=33), "vit_width")])
def test_damaged_metadata_of_an_export(saved, tmp_path, damage, words):
    import_file(saved("ve"), tmp_path / "run", "ve", heads=4)
    export(tmp_path / "run", tmp_path / "folder", "safetensors")
    file = tmp_path / "folder" / "model.safetensors"
    metadata, tensors = read_metadata(file), {k: np.array(v) for k, v in read_tensors(file).items()}
    config = damage(metadata.pop("config"))
    save_file(tensors, file, metadata if config is None else metadata | {"config": config})
    with pytest.raises(UserError, match=words):
        read_stored(tmp_path / "folder")


def test_a_config_is_checked_before_the_file_is_read(tmp_path, capsys):
    assert main(["import", str(tmp_path / "none.pth"), "--out", str(tmp_path / "run"),
                 "--config", str(TINY), "--config.model.vit_depth=-3"]) == 2
    assert "config.model.vit_depth is -3" in capsys.readouterr().err


def test_names_of_very_many_layers(tmp_path):
    tensors = tensors_of("ve")
    one = np.zeros(1, np.float32)
    names = {f"visual_encoder.blocks.{i}.norm1.weight": one for i in range(3, 2000)}
    write_torch_file(tmp_path / "ve.pth", tensors | names)
    with pytest.raises(UserError, match="speaks of 1999 layers, and no model has more than 256"):
        import_file(tmp_path / "ve.pth", tmp_path / "run", "ve", heads=4)
