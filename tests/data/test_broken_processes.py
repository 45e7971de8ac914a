"""Broken examples of two real processes: counted together, and above the share both end."""

import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parents[2]
PROGRAM = """
from albef_jax.parallel import processes
with processes.joined(timeout=10, hang_timeout=30):
    import jax
    from albef_jax.data.pipeline import Broken
    me, broken = jax.process_index(), Broken(0.02)
    broken.add(100, {f"{me}.jpg": "missing", f"{me}.png": "empty file"} if me == 0 else {})
    processes.wait_for_all("one")
    print("before", broken.count, broken.seen, broken.note(), flush=True)
    processes.wait_for_all("other")
    if me == 1:
        broken.add(0, {f"{number}.png": "missing" for number in range(1, 4)})
    processes.wait_for_all("never")
"""


def test_two_processes():
    """Two of 200 are within the share of 2%, five are not, though each has few by itself."""
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "local_processes.py", "--processes", "2",
         "--devices-per-process", "1", "--grace", "4", "--", sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": f"{ROOT}"}, text=True, capture_output=True, timeout=100)
    said = done.stdout + done.stderr
    assert "[0] before 2 200 2 of 200 reads failed and were replaced: 0.jpg (missing), " in said
    assert "[1] before 2 200 2 of 200 reads failed and were replaced: 2 others" in said
    sentence = ("5 of 200 examples could not be read, more than data.max_bad_share=0.02: 1.png "
                "(missing), 2.png (missing), 3.png (missing) and 2 others; mend them")
    assert f"[1] albef: {sentence}" in said, said
    assert f"[0] albef: process 1 of 2 failed and ended all: {sentence}" in said
    assert done.returncode
