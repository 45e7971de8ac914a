"""Every tensor is accounted for, and the table says what went where."""

import re

import ml_dtypes
import numpy as np
import pytest

from albef_jax.errors import UserError
from albef_jax.weights.report import Report, fault

SOURCES = ["blocks.0.weight", "blocks.1.weight", "head.weight", "ids"]
TARGETS = [("params", "block_0", "kernel"), ("params", "block_1", "kernel"),
           ("params", "head", "kernel"), ("params", "temp")]


def complete():
    report = Report("a.pth -> b")
    for source, target in zip(SOURCES[:3], TARGETS):
        report.use([source], target)
    report.ignore("ids", "a constant")
    report.fresh(TARGETS[3], "not there")
    return report


def refused(report, match, sources=SOURCES, targets=TARGETS):
    with pytest.raises(UserError, match=match) as error:
        report.check(sources, targets)
    assert str(error.value).startswith("a.pth -> b: ")
    assert str(error.value).count("\n") == 0


def test_everything_accounted_for():
    complete().check(SOURCES, TARGETS)


def test_left_over_and_left_out():
    refused(complete(), r"1 unknown \(more\)", [*SOURCES, "more"])
    refused(complete(), r"1 missing \(head.weight\)", SOURCES[:2] + SOURCES[3:])
    refused(complete(), r"1 without a value \(params/new\)", targets=[*TARGETS, "params/new"])
    refused(complete(), r"1 not part of the model \(params/temp\)", targets=TARGETS[:3])
    refused(complete(), r"5 unknown \(m0, m1, m2 and 2 more\); 1 without a value",
            [*SOURCES, *(f"m{i}" for i in range(5))], [*TARGETS, "x"])


def test_filled_twice_and_unfit():
    report = complete()
    report.use(["head.weight"], TARGETS[0])
    refused(report, r"1 filled twice \(params/block_0/kernel\)")
    report = complete()
    report.wrong("head.weight", "has shape [3], not [4]")
    refused(report, r"1 cannot be used \(head.weight has shape \[3\], not \[4\]\)")


def test_table():
    report = complete()
    report.interpolate(TARGETS[0], "256 px", "384 px")
    assert str(report).splitlines() == [
        "a.pth -> b",
        "  blocks.0-1.weight  2  -> params/block_0-1/kernel",
        "  head.weight        1  -> params/head/kernel",
        "  ignored: ids  1  a constant",
        "  fresh: params/temp  1  not there",
        "  interpolated: params/block_0/kernel from 256 px to 384 px",
        "  3 tensors used, 1 ignored; 3 parameters filled, 1 fresh"]


@pytest.mark.parametrize("array, shape, dtype, what", [
    (np.zeros((2, 3), np.float32), (3, 2), np.float32, r"has shape \[2, 3\], not \[3, 2\]"),
    (np.zeros(2, np.float64), (2,), np.float32, "is float64"),
    (np.zeros(2, np.int64), (2,), np.float32, "is int64"),
    (np.zeros(2, np.float32), (2,), np.int32, "is float32, not an integer"),
    (np.array([2**40]), (1,), np.int32, "beyond int32"),
    (np.array([0, np.nan], np.float32), (2,), np.float32, "NaN"),
    (np.array([0, np.inf], ml_dtypes.bfloat16), (2,), np.float32, "NaN or infinity")])
def test_faults(array, shape, dtype, what):
    assert re.search(what, fault(array, shape, dtype))


@pytest.mark.parametrize("array, dtype", [
    (np.ones(2, np.float32), np.float32), (np.ones(2, np.float16), np.float32),
    (np.ones(2, ml_dtypes.bfloat16), np.float32), (np.array([7, -100]), np.int32),
    (np.full(2, 3e38, np.float32), np.float32), (np.zeros(0, np.int64), np.int32)])
def test_no_fault(array, dtype):
    assert fault(array, array.shape, dtype) is None  # a sum that overflows is no infinity
