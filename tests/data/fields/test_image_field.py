"""Images as a field: several views, engines, what is read and how often."""

from concurrent.futures import ThreadPoolExecutor
import importlib.util
import threading

import numpy as np
import pytest

from albef_jax.data.fields.image import ImageField, engine_name, make_engine
from albef_jax.errors import UserError

HAS_TF = importlib.util.find_spec("tensorflow") is not None
ENGINES = ["pillow", pytest.param("tf", marks=pytest.mark.skipif(not HAS_TF, reason="no tf"))]


@pytest.fixture
def open_field(data_config):
    """`open_field(views, engine=...)` -> a field of images of 8 pixels."""
    def make(views=1, **settings):
        data_config.update(settings)
        field = ImageField(data_config, 8, views)
        field.open({"views": views}, None)
        return field

    return make


def shade(value):
    return np.full((8, 8, 3), value, np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
def test_views_stay_together_and_each_has_draws_of_its_own(open_field, engine):
    field = open_field(2, engine=engine, crop_scale=(), flip=0.5, randaugment=(0, 0))
    ramp = np.broadcast_to(np.arange(0, 240, 30, dtype=np.uint8)[:, None], (8, 8, 3))
    values = [lambda n=n: [ramp + n, ramp + n + 1] for n in range(6)]
    evaluated, problems = field.load(values, [None] * 6, False)
    assert evaluated["image"].shape == (6, 2, 8, 8, 3) and problems == [None] * 6
    assert evaluated["image"][:, :, 0, 0, 0].tolist() == [[n, n + 1] for n in range(6)]
    rngs = [np.random.default_rng(seed) for seed in range(20)]
    trained, _ = field.load([lambda: [ramp, ramp]] * 20, rngs, True)
    flipped = trained["image"][:, :, 0, 0, 0] > 0
    assert 0 < (flipped[:, 0] != flipped[:, 1]).sum() < 20


@pytest.mark.parametrize("engine", ENGINES)
def test_an_example_is_read_once_for_all_its_views_by_any_threads(open_field, engine):
    reads, lock = [], threading.Lock()

    def value(number):
        with lock:
            reads.append(number)
        return [shade(number), shade(number + 100)]

    field = open_field(2, engine=engine)
    with ThreadPoolExecutor(8) as pool:
        images, problems = field.load([lambda n=n: value(n) for n in range(30)], [None] * 30,
                                      False, pool.map)
    assert sorted(reads) == list(range(30)) and problems == [None] * 30
    assert images["image"][:, :, 0, 0, 0].tolist() == [[n, n + 100] for n in range(30)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_view_is_named(open_field, engine):
    def gone():
        raise FileNotFoundError("nowhere")

    values = [lambda: [shade(1), b""], lambda: [b"<html>", shade(1)], lambda: [b"", b""], gone,
              lambda: [shade(1), shade(2)]]
    images, problems = open_field(2, engine=engine).load(values, [None] * 5, False)
    assert problems == ["image 2: empty file", "image 1: not an image", "empty file", "missing",
                        None]
    assert images["image"][4, 1, 0, 0, 0] == 2


def test_blind_reads_nothing(open_field):
    def never():
        raise AssertionError("it was read")

    for views in (1, 2):
        images, problems = open_field(views, blind=True).load([never] * 3, [None] * 3, False)
        assert not images["image"].any() and problems == [None] * 3
        assert images["image"].shape[1:] == ImageField({}, 8, views).spec()["image"].shape


def test_engines_by_name(data_config, monkeypatch):
    with pytest.raises(UserError, match="data.engine='dali' is unknown; use 'auto', 'tf' or"):
        engine_name("dali")
    for has_tf in (True, False):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=has_tf: found or None)
        assert engine_name("auto") == ("tf" if has_tf else "pillow")
        assert engine_name("pillow") == "pillow"
    with pytest.raises(UserError, match="data.engine='tf' needs TensorFlow; install it or"):
        engine_name("tf")
    data_config.engine = "auto"
    assert type(make_engine(data_config, 8)).__name__ == "PillowEngine"
    data_config.engine = "tf"
    ImageField(data_config, 8).check()  # planned here, trained elsewhere
    with pytest.raises(UserError, match="needs TensorFlow"):
        make_engine(data_config, 8)
