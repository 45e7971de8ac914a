"""Config files, overrides and checks: every mistake is one sentence."""

import json
import pathlib

import pytest

from albef_jax.config import (
    apply_overrides,
    check_config,
    default_config,
    from_json,
    load_config,
    to_json,
    with_task,
)
from albef_jax.errors import CodeError, UserError
from albef_jax.tasks import TASKS

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SCENES = "scenes:demo:heldout"


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_every_task_can_be_used_and_written(task):
    config = default_config(task)
    check_config(config)
    again = from_json(to_json(config))
    assert to_json(again) == to_json(config)
    assert again.optimizer.no_decay == config.optimizer.no_decay


def test_a_task_has_its_own_keys_only():
    assert "mask_rate" in default_config().objective
    assert "mask_rate" not in default_config("vqa").objective
    assert default_config("vqa").data.answer_length == 10
    with pytest.raises(UserError, match="config.data.answer_length does not exist; the keys there "
                                        "are blind, .*text_length"):
        apply_overrides(default_config(), ["--config.data.answer_length=4"])


def test_another_task_keeps_what_both_have():
    config = default_config()
    config.model.vit_depth, config.objective.alpha_itc, config.data.text_length = 3, 0.1, 17
    config.data.source = dict(kind="synthetic", size=7)
    config.evals.dev = dict(kind="retrieval", source="scenes:demo")
    for other in (with_task(config, "vqa"), apply_overrides(config, ["--config.task=vqa"])):
        assert (other.task, other.model.vit_depth, other.data.text_length) == ("vqa", 3, 17)
        assert other.data.source.to_dict() == dict(kind="synthetic", size=7)
        assert "alpha_itc" not in other.objective and "dev" in other.evals
    assert config.task == "pretrain"


def test_keys_that_came_or_went_since_a_config_was_written():
    old = json.loads(to_json(default_config("ve")))
    old["model"] |= {"gone": 1}
    del old["model"]["scan"], old["rules"]
    again = from_json(json.dumps(old))
    assert "gone" not in again.model and again.model.scan is False
    assert again.rules == default_config().rules


@pytest.mark.parametrize("name, sentence", [
    ("reading", "config.task is 'reading'; use one of pretrain, .*package.module:Class"),
    ("no.such.module:Task", "names the module no.such.module, which cannot be imported"),
    ("no_such_file.py:Task", "no_such_file.py does not exist"),
    ("albef_jax.tasks.vqa:Nothing", "has no class Nothing derived from albef_jax.tasks.base.Task"),
    ("albef_jax.config:ConfigDict", "has no class ConfigDict derived from"),
])
def test_tasks_that_are_not_there(name, sentence):
    with pytest.raises(UserError, match=sentence):
        default_config(name)


def test_variant_and_overrides(tmp_path):
    path = tmp_path / "some.py"
    path.write_text("from albef_jax.config import default_config\n"
                    "def get_config(variant=None):\n"
                    "    config = default_config()\n"
                    "    config.wandb = variant or 'none'\n"
                    "    return config\n")
    config = load_config(f"{path}:mine", ["--config.model.image_size=224",
                                          "--config.optimizer.peak_lr=1",
                                          "--config.data.crop_scale=(0.5, 1.0)"])
    assert (config.wandb, config.optimizer.peak_lr) == ("mine", 1.0)
    assert config.model.image_size == 224
    assert config.data.crop_scale == (0.5, 1.0)
    assert load_config(path).wandb == "none"


@pytest.mark.parametrize("text, sentence", [
    ("x = 1", "has no function get_config"),
    ("from albef_jax.config import default_config\n"
     "def get_config(variant=None):\n    c = default_config()\n    c.batchsize = 3", "batchsize"),
    ("from albef_jax.config import default_config\n"
     "def get_config(variant=None):\n    c = default_config()\n    c.seed = 'a'", "seed|int"),
])
def test_config_file_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "some.py").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_config(tmp_path / "some.py")


@pytest.mark.parametrize("body, sentence", [
    ("return ConfigDict()", "must return a config, such as default_config.. gives "),
    ("pass", "must return a config, .*; it returns None"),
    ("return ConfigDict(dict(task='pretrain'))", "without config.accumulation; start from"),
    ("c = default_config().unlock(); del c.data.source; return c", "without config.data.source"),
    ("c = default_config()\n    with c.ignore_type(): c.model = 3\n    return c",
     "returns 3 as config.model, which is a block"),
    ("import sys; sys.exit(3)", "ends the program .it calls sys.exit"),
])
def test_what_a_config_file_gives_is_no_config(tmp_path, body, sentence):
    (tmp_path / "some.py").write_text(
        "from ml_collections import ConfigDict\nfrom albef_jax.config import default_config\n"
        f"def get_config(variant=None):\n    {body}\n")
    with pytest.raises(UserError, match=sentence) as error:
        load_config(tmp_path / "some.py")
    assert "\n" not in str(error.value) and not isinstance(error.value, CodeError)


@pytest.mark.parametrize("file, known", [
    ("demo.py:nosie", "it has noise"), ("bench_tiny.py:big", "it has none"),
    ("demo_tasks.py:vqe", "it has retrieval, vqa, "),
    ("flickr8k_tasks.py:vqe,data", "it has retrieval, vqa, "),
    ("flickr8k_imagebert.py:data", "it has pretrain, retrieval"),
])
def test_unknown_variants(file, known):
    with pytest.raises(UserError, match=known):
        load_config(CONFIGS / file)


def test_config_file_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="does not exist; give the path"):
        load_config(tmp_path / "none.py")


def test_source_by_its_short_form():
    config = apply_overrides(default_config(), ["--config.data.source=tfds:coco_captions:val"])
    assert config.data.source.to_dict() == dict(kind="tfds", name="coco_captions", split="val")
    with pytest.raises(UserError, match="'pairs.json' is no data source; write json:FILE"):
        apply_overrides(config, ["--config.data.source=pairs.json"])


@pytest.mark.parametrize("override, sentence", [
    ("--config.batchsize=4", "config.batchsize does not exist; the keys there are"),
    ("--config.model.depth=4", "config.model.depth does not exist"),
    ("--config.batch_size=four", "is a int"),
    ("--config.batch_size=2.5", "is a int"),
    ("--config.model=4", "is a block"),
    ("--batch_size=4", "is not understood"),
    ("--config.batch_size", "is not understood"),
])
def test_overrides_that_do_not_fit(override, sentence):
    with pytest.raises(UserError, match=sentence):
        apply_overrides(default_config(), [override])


@pytest.mark.parametrize("key, value, sentence", [
    ("data.workers", "-1", "config.data.workers is -1; it must be a whole number, from 0 to 4096"),
    ("data.flip", "1.5", "must be a number, from 0 to 1"),
    ("seed", "-1", "config.seed is -1; it must be a whole number, from 0 to"),
    ("optimizer.peak_lr", "float('nan')", "is not"),
    ("optimizer.weight_decay", "1e400", "config.optimizer.weight_decay is inf"),
    ("optimizer.b1", "1.5", "config.optimizer.b1 is 1.5"),
    ("model.text_width", "0", "config.model.text_width is 0"),
    ("log_every", "-1", "config.log_every is -1"),
    ("data.crop_scale", "(1.0, 0.2)", "data.crop_scale"),
    ("data.randaugment", "(2,)", "data.randaugment"),
    ("rules", "(('embed', 'modle'),)", "config.rules has"),
    ("rules", "(('width', 'model'),)", "give pairs of one of"),
    ("objective.mask_replace", "(0.8, 0.1, 0.2)", "sum to 1"),
    ("checkpoint.best_metric", "retrieval/r_mean", "no such block; it has none"),
])
def test_values(key, value, sentence):
    with pytest.raises(UserError, match=sentence):
        check_config(apply_overrides(default_config(), [f"--config.{key}={value}"]))


@pytest.mark.parametrize("key, value, sentence", [
    ("model.image_size", "250", "not a multiple of model.patch_size 16; set it to 240"),
    ("model.vit_heads", "7", "not a multiple of model.vit_heads 7"),
    ("data.text_length", "600", "exceeds model.max_positions"),
    ("data.randaugment", "('a', 7)", "data.randaugment is ..a., 7.; it must be a tuple, each item "
                                    "a whole number, from 0 to 10"),
    ("data.randaugment", "(1.5, 7)", "data.randaugment"),
    ("data.randaugment", "(2, 50)", "data.randaugment"),
    ("data.randaugment", "(2, -5)", "data.randaugment"),
    ("model.image_size", "0", "config.model.image_size is 0; it must be a whole number, from 1"),
    ("model.text_mlp_width", "0", "config.model.text_mlp_width is 0"),
    ("model.init_std", "-1.0", "config.model.init_std is -1.0; it must be a number, from 0 to 1"),
    ("objective.temperature", "0.0", "config.objective.temperature is 0.0"),
    ("objective.alpha_itc", "1e400", "config.objective.alpha_itc is inf"),
    ("objective.alpha_itc", "True", "config.objective.alpha_itc is a float"),
    ("optimizer.eps", "-1.0", "config.optimizer.eps is -1.0; it must be a number, at least 0"),
    ("optimizer.no_decay", "('(',)", "has '.', which is no regular expression"),
    ("optimizer.lr_factors", "(('text', -1),)", "give pairs of a pattern of paths and a number"),
    ("data.examples", "-1", "config.data.examples is -1"),
    ("batch_size", "None", "config.batch_size is None; it must be a whole number"),
    ("seed", str(2**64), "config.seed is 18446744073709551616"),
    ("mesh.data", "None", "config.mesh.data is None"),
    ("mesh.slices", "0", "config.mesh.slices is 0"),
    ("matmul_precision", "hihg", "'hihg'; it must be 'default', 'high' or 'highest'"),
    ("rules", "None", "config.rules is None; give a tuple of pairs"),
    ("data.source.files", "None", "has files=None; it must be a tuple, each item a text"),
    ("seed", "(" * 5000, "config.seed is a int"),
    ("model.remat_save", "('kv',)", "remat_save is ..kv.,.; it must be a tuple, each item 'qkv', "
                                    "'attention' or 'mlp'"),
    ("model.dtype", "float16", "it must be 'float32' or 'bfloat16'"),
])
def test_sizes(key, value, sentence):
    with pytest.raises(UserError, match=sentence):
        check_config(apply_overrides(default_config(), [f"--config.{key}={value}"]))


@pytest.mark.parametrize("name, block, sentence", [
    ("dev", 3, "config.evals.dev is 3; give it a block"),
    ("dev", dict(kind="retrieval"), "has no source"),
    ("dev", dict(kind="retrieval", source=7), "config.evals.dev.source is 7; give it a block"),
    ("dev", dict(kind="retrieval", source=SCENES, k="many"), "k='many'; it must be a whole number"),
    ("dev", dict(kind=["retrieval"], source=SCENES), "kind of an evals block is .*; use one of"),
    ("a/b", dict(kind="retrieval", source=SCENES), "has a block 'a/b'; names are of letters"),
    ("dev", dict(kind="vqa", source=SCENES), "cannot do; it can do 'retrieval'"),
    ("dev", dict(kind="grounding", source=SCENES, layer=3), "Layer 3 reads no image"),
])
def test_evals_blocks(name, block, sentence):
    config = default_config()
    config.evals[name] = block
    with pytest.raises(UserError, match=sentence):
        check_config(config)


@pytest.mark.parametrize("source, sentence", [
    (dict(kind="synthetic", size=None), "size=None; it must be a whole number, at least 1"),
    (dict(kind="synthetic", size=10**12), "it must be a whole number, from 1 to 2147483647"),
    (dict(kind="scenes", swapped=float("nan")), "swapped=nan; it must be a number, from 0 to 1"),
    (dict(kind="mixture", parts=None), "A mixture has no parts"),
    (dict(kind="mixture", parts=(dict(source=dict(kind="json", files=3), weight=1),)), "files=3"),
    (dict(kind="nlvr", files=("a",), crops=((0, 0, 1, None),) * 2), "give two rectangles"),
    (dict(kind="products", files=("a",), coarse="x"), "coarse='x'; it must be a whole number"),
    (dict(kind="scenes_products", presence=("a",) * 5), "presence=.*each item a number"),
])
def test_sources_are_checked_before_they_are_read(source, sentence):
    config = default_config()
    config.data.source = source
    with pytest.raises(UserError, match=sentence):
        check_config(config)
