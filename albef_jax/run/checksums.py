"""Checksums of the arrays of a state that do not depend on how devices share them."""

import jax
import jax.numpy as jnp
import numpy as np

AT_ONCE = 1 << 22  # elements of an array on the host
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes


def checksums(tree):
    """Path of a leaf -> the sum of (2i + 1) x bits of element i, modulo 2^32, as an int.

    The factors are odd, so no change of a single bit goes unnoticed, nor do most others. Arrays of
    accelerators are summed up where they are; all processes that share one call this together.

    Args:
      tree: of jax arrays (typed keys too), numpy arrays and scalars.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): plain(leaf)
             for path, leaf in leaves}
    far = {name: leaf for name, leaf in named.items() if not is_near(leaf)}
    sums = {name: of_host(np.asarray(leaf)) for name, leaf in named.items() if name not in far}
    sums |= jax.device_get(_of_devices(far)) if far else {}
    return {name: int(sums[name]) for name in named}


def plain(leaf):
    """A leaf without types that are jax's own: a typed key as its integers."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def is_near(leaf):
    """Whether all of a leaf is in the memory of this process's host: no copy, and no compilation."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable and all(
        device.platform == "cpu" for device in leaf.devices())


def of_host(array):
    """The sum of a numpy array, uint32."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = flat.view(UNSIGNED[flat.dtype.itemsize])
    total = np.uint32(0)
    for start in range(0, len(bits), AT_ONCE):
        block = bits[start:start + AT_ONCE]
        factors = 2 * np.arange(start, start + len(block), dtype=np.uint32) + 1
        total += np.sum(block.astype(np.uint32) * factors, dtype=np.uint32)
    return total


@jax.jit
def _of_devices(arrays):
    return jax.tree.map(_of_device, arrays)


def _of_device(array):
    bits = array.astype(jnp.uint8) if array.dtype == bool else jax.lax.bitcast_convert_type(
        array, UNSIGNED[array.dtype.itemsize])
    index, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
        stride = stride * array.shape[axis] % 2**32
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)
