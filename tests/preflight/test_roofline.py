"""The arithmetic of predicted times."""

import math

import pytest

from albef_jax.preflight.roofline import EFFICIENCY, GPUS, TPUS, predict

PEAK, BANDWIDTH, NETWORK = 100.0, 10.0, 5.0


def test_each_instruction_counts_by_what_limits_it():
    work = [(1000, 10), (100, 70)]  # 10 s of products; 7 s of memory
    found = predict(work, [20, 5], PEAK, BANDWIDTH, NETWORK)
    assert found[:3] == (10.0, 7.0, 5.0)
    assert found.bound == 22.0
    assert found.expected == pytest.approx(17.0 / EFFICIENCY + 5.0)


def test_one_device_needs_no_network():
    assert predict([(100, 0)], [], PEAK, BANDWIDTH, math.nan).bound == 1.0


@pytest.mark.parametrize("kind, shape, links", [
    ("v5e", (2, 4), 2),  # a link each along two lines
    ("v5e", (16, 16), 4),  # two rings, both directions
    ("v5e", (8, 16), 3),
    ("v5e", (1, 4), 1),
    ("v5e", (1, 1), 0),
    ("v4", (2, 2, 2), 3),
    ("v4", (4, 4, 4), 6),
    ("v6e", (4, 4), 2),
])
def test_links_of_a_slice(kind, shape, links):
    chip = TPUS[kind]
    assert chip.network(shape) == links * chip.link


def test_gpus_are_all_connected():
    assert GPUS["a100"].network((8,)) == GPUS["a100"].link


def test_every_chip_has_a_peak():
    for chip in (*TPUS.values(), *GPUS.values()):
        # A datasheet's balance: so many FLOPs for each byte that comes from memory.
        assert 100 < chip.peak / chip.bandwidth < 600
