"""Some parts of a state restored alone: the bits of those parts, and nothing else is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albef_jax.run.checkpoint import Checkpointer
from albef_jax.config import default_config
from albef_jax.errors import UserError


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of numpy arrays without optimizer state, as an import writes it."""
    state = {"step": np.zeros((), np.int32), "teacher": {}, "memory": {"pointer": np.array(7)},
             "params": {"dense": {"kernel": np.random.default_rng(0).normal(size=(5, 3)).astype(
                 np.float32)}, "temp": np.array(0.07, np.float32)}}
    checkpointer = Checkpointer(tmp_path, default_config().checkpoint, {})
    checkpointer.save(0, state, wait=True)
    yield checkpointer, state
    checkpointer.close()


def test_parts_are_bit_exact(saved):
    checkpointer, state = saved
    shapes = checkpointer.shapes()
    assert shapes["params"]["dense"]["kernel"].shape == (5, 3) and set(shapes) == set(state)
    parts, step = checkpointer.restore({"params": shapes["params"], "teacher": {}}, partial=True)
    assert step == 0 and set(parts) == {"params", "teacher"} and parts["teacher"] == {}
    for restored, before in zip(jax.tree.leaves(parts["params"]),
                                jax.tree.leaves(state["params"]), strict=True):
        assert isinstance(restored, np.ndarray) and restored.dtype == before.dtype
        np.testing.assert_array_equal(restored, before)


def test_parts_go_onto_devices(saved):
    checkpointer, state = saved
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                        state["params"])
    parts, _ = checkpointer.restore({"params": like}, partial=True)
    assert parts["params"]["temp"].sharding == device
    np.testing.assert_array_equal(parts["params"]["dense"]["kernel"],
                                  state["params"]["dense"]["kernel"])


def test_other_shapes_and_missing_parts(saved):
    checkpointer, state = saved
    wrong = {"params": {**state["params"], "temp": jnp.zeros(2)}}
    with pytest.raises(UserError, match="belongs to another config: params/temp"):
        checkpointer.restore(wrong, partial=True)
    with pytest.raises(UserError, match="opt_state/count .absent there"):
        checkpointer.restore({"opt_state": {"count": np.zeros(())}}, partial=True)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        checkpointer.shapes(3)
