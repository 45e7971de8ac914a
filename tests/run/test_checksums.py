"""Sums of arrays: any layout gives the same, any flipped bit another."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from albef_jax.run import checksums as module
from albef_jax.run.checksums import _of_devices, checksums, of_host

DTYPES = ("float32", "bfloat16", "int32", "uint8", "bool")


def values(dtype, shape=(6, 4)):
    return jnp.asarray(np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 90, shape),
                       dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_devices_agree(dtype, monkeypatch):
    array = values(dtype)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))
    on_devices = jax.device_get(_of_devices({"a": array, "b": split}))
    monkeypatch.setattr(module, "AT_ONCE", 5)
    assert {int(x) for x in on_devices.values()} == {int(of_host(np.asarray(array)))}
    assert checksums({"x": {"y": split}}) == {"x/y": int(of_host(np.asarray(array)))}


def test_every_flipped_bit_is_noticed():
    array = np.random.default_rng(0).normal(size=70).astype(np.float32)
    before = of_host(array)
    for bit in range(32 * len(array)):
        flipped = array.view(np.uint32).copy()
        flipped[bit // 32] ^= np.uint32(1) << np.uint32(bit % 32)
        assert of_host(flipped.view(np.float32)) != before


def test_of_anything_a_state_has():
    state = {"key": jax.random.key(3), "count": np.int32(7), "none": np.zeros((0, 3), np.float32),
             "step": jnp.int32(7)}
    sums = checksums(state)
    assert sums["count"] == sums["step"] == 7 and sums["none"] == 0
    assert sums["key"] == of_host(np.asarray(jax.random.key_data(state["key"])))
