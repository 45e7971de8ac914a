"""What training fills into its config, and what it refuses before the first step."""

from etils import epath
import pytest

from albef_jax import train
from albef_jax.config import default_config, load_config
from albef_jax.data.fields import image
from albef_jax.data.sources import make_source
from albef_jax.run.workdir import compare_config, write_config

TINY = epath.Path(__file__).with_name("tiny.py")


@pytest.fixture
def config():
    return load_config(TINY, ["--config.data.engine=auto", "--config.epochs=3",
                              "--config.objective.alpha_ramp_steps=-1"])


def resolved(config, workdir):
    return train.resolve(config, make_source(config.data.source), None, epath.Path(workdir))


def test_what_the_data_decides(config, tmp_path):
    config.steps = 0
    done = resolved(config, tmp_path)
    assert done.steps == 3 * (40 // 16) and done.optimizer.steps_per_epoch == 2
    assert done.objective.alpha_ramp_steps == 2 and done.data.fingerprint
    assert config.steps == 0  # the one given is as it was


def test_the_run_keeps_its_engine(config, tmp_path, monkeypatch, capsys):
    """'auto' is decided once; another machine without it says what it does."""
    monkeypatch.setattr(image.importlib.util, "find_spec", lambda name: object())
    first = resolved(config, tmp_path)
    assert first.data.engine == "tf"
    write_config(first, epath.Path(tmp_path), is_writer=True)

    monkeypatch.setattr(image.importlib.util, "find_spec", lambda name: None)
    other = resolved(config, tmp_path)
    assert other.data.engine == "pillow"
    compare_config(other, epath.Path(tmp_path), is_writer=True)
    assert "config.data.engine='pillow', which was 'tf'" in capsys.readouterr().err

    elsewhere = resolved(config, tmp_path / "new")
    assert elsewhere.data.engine == "pillow"
    write_config(elsewhere, epath.Path(tmp_path), is_writer=True)
    monkeypatch.setattr(image.importlib.util, "find_spec", lambda name: object())
    assert resolved(config, tmp_path).data.engine == "pillow"  # though TensorFlow is here now


def test_a_task_without_images_has_no_engine():
    assert "engine" in default_config().data
    outside = default_config(f"{TINY.parent}/outside/sounds.py:SoundText")
    assert "engine" not in outside.data
