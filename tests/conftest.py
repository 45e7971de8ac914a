"""Settings of every test run, set before JAX starts, and the tiny config that tests share."""

import functools
from importlib import metadata
import os
from pathlib import Path
import sys

TESTS = Path(__file__).parent
# Child processes inherit all of these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(TESTS.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most of the tests' time is compilation, and most of that is XLA making tiny models fast.
FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
sys.path.insert(0, str(TESTS))  # parity.py

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from albef_jax.config import load_config  # noqa: E402
from albef_jax.core.build import build  # noqa: E402
from albef_jax.core.state import TrainState  # noqa: E402
from albef_jax.parallel.mesh import make_mesh  # noqa: E402
from albef_jax.models.fused import CHOICES  # noqa: E402
from albef_jax.preflight.bench import noise_batch  # noqa: E402
from albef_jax.tasks.albef import MODEL  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--attention", choices=CHOICES, default=MODEL["attention"],
                     help="model.attention of ALBEF's configs that do not say it")


def pytest_configure(config):
    MODEL["attention"] = config.getoption("--attention")


@functools.cache
def make_tiny(overrides):
    """Task, optimizer, fresh state and batch of noise of the tiny config with `overrides`."""
    scale = next((value for value in overrides if value.startswith("task=scale_")), "")
    file = f"tiny_scale.py:{scale.removeprefix('task=')}" if scale else "tiny.py"
    config = load_config(TESTS / file, [f"--config.{value}" for value in overrides
                                        if value != scale])
    parts = build(config, make_mesh(devices=jax.devices()[:1]))
    state = jax.jit(lambda: TrainState.create(parts.task, parts.optimizer, config.seed))()
    return parts.task, parts.optimizer, state, noise_batch(config)


@pytest.fixture
def tiny_run():
    """`tiny_run("batch_size=8", ...)` -> task, optimizer, state and batch of tests/tiny.py.

    With "task=scale_pretrain" and the like, of tests/tiny_scale.py.
    """
    def make(*overrides):
        task, optimizer, state, batch = make_tiny(overrides)
        # Copies: steps donate their state, and a test may change its batch.
        return task, optimizer, jax.tree.map(jnp.copy, state), jax.tree.map(jnp.asarray, batch)

    return make
