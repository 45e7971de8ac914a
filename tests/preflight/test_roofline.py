"""The arithmetic of predicted times, and the datasheets it starts from."""

import math

import pytest

from albef_jax.preflight.roofline import GPUS, TPUS, predict

PEAK, BANDWIDTH, NETWORK = 100.0, 10.0, 5.0


def test_each_instruction_counts_by_what_limits_it():
    work = [(1000, 10), (100, 70)]  # 10 s of products; 7 s of memory
    found = predict(work, [20, 5], PEAK, BANDWIDTH, NETWORK)
    assert found[:3] == (10.0, 7.0, 5.0)
    assert found.bound == 22.0
    assert found.expected == pytest.approx(17.0 / 0.6 + 5.0)  # the network is not made slower


def test_one_device_needs_no_network():
    assert predict([(100, 0)], [], PEAK, BANDWIDTH, math.nan).bound == 1.0


# GB/s that a chip sends over its slice: 45 or 90 for each link along a line, twice that in a ring.
@pytest.mark.parametrize("kind, shape, gigabytes", [
    ("v5e", (2, 4), 90),  # a link each along two lines
    ("v5e", (16, 16), 180),  # two rings, both directions
    ("v5e", (8, 16), 135),
    ("v5e", (1, 4), 45),
    ("v5e", (1, 1), 0),
    ("v4", (2, 2, 2), 135),
    ("v4", (4, 4, 4), 270),
    ("v5p", (4, 4, 4), 540),
    ("v6e", (4, 4), 180),
])
def test_links_of_a_slice(kind, shape, gigabytes):
    assert TPUS[kind].network(shape) == pytest.approx(gigabytes * 1e9)


@pytest.mark.parametrize("shape", [(2,), (8,)])
def test_gpus_are_all_connected(shape):
    """NVLink of a GPU in one direction, half of what datasheets add up."""
    sent = {kind: chip.network(shape) / 1e9 for kind, chip in GPUS.items()}
    assert sent == {"a100": 300, "h100": 450, "h200": 450}


# Datasheets: dense bfloat16 TFLOP/s, GB/s of memory, and its GB.
@pytest.mark.parametrize("kind, teraflops, gigabytes, memory", [
    ("v4", 275, 1228, 32), ("v5e", 197, 819, 16), ("v5p", 459, 2765, 95), ("v6e", 918, 1638, 32),
    ("a100", 312, 2039, 80), ("h100", 989, 3350, 80), ("h200", 989, 4800, 141)])
def test_a_product_and_a_copy_take_what_the_datasheet_says(kind, teraflops, gigabytes, memory):
    chip = (TPUS | GPUS)[kind]
    product, copy = 2 * 8192**3, 2 * 2**30  # of square matrices; one GiB read and written
    found = predict([(product, 6 * 8192**2), (0, copy)], [], chip.peak, chip.bandwidth, math.inf)
    assert found.compute == pytest.approx(product / teraflops / 1e12)
    assert found.memory == pytest.approx(copy / gigabytes / 1e9)
    # TPU memory is given in GiB, that of GPUs in GB.
    assert chip.memory == memory * (1e9 if kind in GPUS else 2**30)
