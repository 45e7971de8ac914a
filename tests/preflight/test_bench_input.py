"""`albef bench --input`: every figure is there, from photographs of noise and from a folder."""

import os
from pathlib import Path
import re

import numpy as np
import pytest

from albef_jax.preflight import bench_input
from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.errors import UserError

TINY = Path(__file__).parents[1] / "tiny.py"


def test_noise_is_a_photograph_of_the_usual_size():
    contents = bench_input.photo(np.random.default_rng(0))
    assert 60_000 < len(contents) < 160_000 and contents.startswith(b"\xff\xd8")


def test_a_folder_without_photographs(tmp_path):
    with pytest.raises(UserError, match="holds no .jpg files"):
        bench_input.bench_input(load_config(TINY), str(tmp_path))


@pytest.mark.slow
def test_every_figure_is_printed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(bench_input.photo(rng))
    assert main(["bench", "--input", "--config", str(TINY), "--photos", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    cores = min(2, len(os.sched_getaffinity(0)))
    assert len(re.findall(r"images/s \(rounds", printed)) == 2 * cores
    assert printed.count("by CPU") == cores and printed.count("samples/s at 40% MFU") == 5
    for stage in ("decode", "crop, resize", "RandAugment", "batch assembly"):
        assert re.search(rf"^tf .*{stage}|^pillow .*{stage}", printed, re.MULTILINE)
