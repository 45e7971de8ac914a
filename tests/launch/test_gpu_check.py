"""launch/gpu_check.sh: every check on a CPU with a model of no size, and what is written of them."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]


def check(out, *arguments):
    """Runs it; the exit code, what was written, what was said."""
    done = subprocess.run([ROOT / "launch" / "gpu_check.sh", "--out", out, "--tiny", *arguments],
                          text=True, capture_output=True, check=False)
    return done.returncode, json.loads(out.read_text()) if out.exists() else None, done.stderr


def test_what_does_not_fit_into_the_time_is_said_and_what_is_there_is_kept(tmp_path):
    out = tmp_path / "gpu.json"
    done = {"compared": 607}
    out.write_text(json.dumps({"parity: pretrain_forward": done}))
    code, found, said = check(out, "--seconds", "0")
    assert code == 1 and found.pop("parity: pretrain_forward") == done
    assert {"parity: pretrain_train", "one group, fused", "one group, plain", "resumed run",
            "2 groups", "flags: command buffers off"} == found.keys()
    assert {one["failed"] for one in found.values()} == {"the time of --seconds was over"}
    assert "pretrain_forward ..." not in said


def test_a_folder_that_does_not_exist_is_one_sentence(tmp_path):
    code, found, said = check(tmp_path / "none" / "gpu.json")
    assert (code, found) == (2, None) and "none/gpu.json does not exist; give --out" in said


@pytest.mark.slow
def test_every_check_works(tmp_path):
    """And the tables that are made of what they found."""
    code, found, said = check(tmp_path / "gpu.json")
    assert code == 0, said
    assert found["parity: pretrain_forward"]["compared"] > 300
    assert found["resumed run"]["steps"] == found["resumed run"]["equal"] == 60
    assert 24 <= found["resumed run"]["stopped after"] < 60
    assert all(found[name]["samples_per_second"] > 0 for name in (
        "one group, fused", "one group, plain", "2 groups"))
    assert found["flags: command buffers off"]["parts"]

    results = tmp_path / "results.md"
    results.write_text("<!-- gpu_check -->\n<!-- /gpu_check -->\n")
    subprocess.run([sys.executable, ROOT / "docs" / "gpu_table.py", tmp_path / "gpu.json",
                    "--write", results], check=True)
    text = results.read_text()
    assert "| one group, plain | 8 |" in text and "60 of 60 steps bit for bit" in text
