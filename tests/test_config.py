"""Config files, overrides and checks: every mistake is one sentence."""

import pytest

from albef_jax.config import (
    apply_overrides,
    check_model,
    check_values,
    default_config,
    from_json,
    load_config,
    to_json,
)
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import check_groups


def test_json_round_trip():
    config = default_config()
    again = from_json(to_json(config))
    assert to_json(again) == to_json(config)
    assert again.data.crop_scale == (0.2, 1.0)


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
    assert config.data.image_size == config.model.image_size == 224
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
    ("data.workers", "-1", "config.data.workers is -1; it must be at least 0"),
    ("data.flip", "1.5", "must be from 0 to 1"),
    ("log_every", "-1", "config.log_every is -1"),
    ("data.crop_scale", "(1.0, 0.2)", "data.crop_scale"),
    ("data.randaugment", "(2,)", "data.randaugment"),
    ("rules", "(('embed', 'modle'),)", "config.rules has"),
    ("rules", "(('width', 'model'),)", "give pairs of one of"),
    ("objective.mask_replace", "(0.8, 0.1, 0.2)", "sum to 1"),
    ("checkpoint.best_metric", "retrieval/r_mean", "no such block; it has none"),
])
def test_values(key, value, sentence):
    check_values(default_config())
    with pytest.raises(UserError, match=sentence):
        check_values(apply_overrides(default_config(), [f"--config.{key}={value}"]))


@pytest.mark.parametrize("key, value, sentence", [
    ("model.image_size", "250", "not a multiple of model.patch_size 16; set it to 240"),
    ("model.vit_heads", "7", "not a multiple of model.vit_heads 7"),
    ("data.image_size", "128", "the former follows"),
    ("data.text_length", "600", "exceeds model.max_positions"),
    ("model.remat_save", "('kv',)", "remat_save names 'kv'"),
    ("model.dtype", "float16", "choose 'float32' or 'bfloat16'"),
])
def test_sizes(key, value, sentence):
    check_model(default_config())
    with pytest.raises(UserError, match=sentence):
        check_model(apply_overrides(default_config(), [f"--config.{key}={value}"]))


@pytest.mark.parametrize("sizes, sentence", [
    ((512, 1, 1, 1), "need at least 2"),
    ((500, 64, 1, 1), "set batch_size to 448"),
    ((0, 64, 1, 1), "must be at least 1"),
    ((512, 64, 0, 1), "must be at least 1"),
    ((512, 64, 1, 3), "do not divide over 1 micro-step"),
    ((512, 64, 3, 1), "3 micro-step"),
])
def test_groups(sizes, sentence):
    check_groups(512, 64, 4, 2)
    with pytest.raises(UserError, match=sentence):
        check_groups(*sizes)
