"""Faults at random places, and how many end as promised: prints a table.

    python tests/faults.py FOLDER [--each 10] [--flips 20]

A run of tests/tiny.py is killed, or stopped by each signal, at a random moment and started again:
it must end in the state and the rows of a run that nobody stopped, bit for bit. One bit of a
checkpoint or of a .pth is flipped: it must end in a sentence, or change nothing. Results are kept in
FOLDER; started again, it does what is missing.
"""

import argparse
import contextlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from etils import epath
import jax
import numpy as np

from albef_jax.core.build import build
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import make_mesh
from albef_jax.parallel.signals import SIGNALS
from albef_jax.run.checkpoint import open_to_read
from albef_jax.run.workdir import read_config
from albef_jax.weights.foreign.torch_file import read_tensors
from albef_jax.weights.foreign.torch_writer import write_torch_file

CONFIG = pathlib.Path(__file__).with_name("tiny.py")
TIMES = {"step_time", "samples_per_sec_per_device", "tflops_per_device", "mfu", "data_wait", "wall"}


def start(workdir):
    """Starts a training with a save every third step; its process has the pipe stderr."""
    command = [sys.executable, "-c", "import sys; from albef_jax.cli import main; sys.exit(main())",
               "train", "--config", CONFIG, "--workdir", workdir, "--config.checkpoint.every=3"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(workdir):
    """Trains to the end; whether that went well."""
    process = start(workdir)
    process.communicate()
    return process.returncode == 0


def outcome(workdir):
    """The saved state and the logged rows of a run, without what depends on the clock."""
    config = read_config(epath.Path(workdir))
    state = build(config, make_mesh(devices=jax.devices()[:1])).state
    with open_to_read(workdir, config.checkpoint) as checkpointer:
        restored, _ = checkpointer.restore(state)
    rows = [{key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in (workdir / "metrics.jsonl").read_text().splitlines()
            if json.loads(line).keys() > {"step", "wall"}]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored)], rows


def interrupted(folder, number, straight, rng):
    """Whether a run that gets a signal at a random moment ends as the straight one."""
    shutil.rmtree(folder, ignore_errors=True)
    process, seconds = start(folder), rng.uniform(0, straight["seconds"])
    for line in process.stderr:
        if line.startswith("step 1/"):
            break
    time.sleep(seconds)
    process.send_signal(number)
    process.communicate()
    orderly = process.returncode == (-number if number == signal.SIGKILL else 0)
    # The run may have ended before the signal.
    return ((orderly or process.returncode == 0) and finish(folder)
            and outcome(folder) == outcome(straight["folder"]))


def flipped(file, rng):
    """Flips one bit of a file, anywhere."""
    whole = bytearray(file.read_bytes())
    whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    file.write_bytes(whole)


def flip_in_checkpoint(folder, straight, rng):
    """Whether a flipped bit of the newest checkpoint is told, or changes nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(straight["folder"], folder)
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    flipped(rng.choices(files, [path.stat().st_size for path in files])[0], rng)
    with contextlib.suppress(UserError):
        return outcome(folder) == outcome(straight["folder"])
    return True


def flip_in_weights(folder, straight, rng):
    """Whether a flipped bit of a .pth is told, or changes nothing."""
    del straight
    folder.mkdir(exist_ok=True)
    arrays = {f"layer{i}": np.random.default_rng(i).normal(size=(64, 64)) for i in range(4)}
    write_torch_file(folder / "model.pth", arrays)
    flipped(folder / "model.pth", rng)
    with contextlib.suppress(UserError):
        read = read_tensors(folder / "model.pth")
        return read.keys() == arrays.keys() and all(
            np.array_equal(read[name], arrays[name]) for name in arrays)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--each", type=int, default=10, help="runs of each signal, twice of SIGKILL")
    parser.add_argument("--flips", type=int, default=20, help="bits in each kind of file")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    straight = {"folder": args.folder / "straight"}
    begin = time.monotonic()
    assert finish(straight["folder"])
    straight["seconds"] = max((time.monotonic() - begin) / 3, 3)  # the rest is its start

    kinds = {"a bit of a checkpoint": (args.flips, flip_in_checkpoint),
             "a bit of a .pth": (args.flips, flip_in_weights)}
    for number in (signal.SIGKILL, *SIGNALS):
        kinds[number.name] = (args.each * (2 if number == signal.SIGKILL else 1),
                              lambda folder, straight, rng, number=number: interrupted(
                                  folder, number, straight, rng))
    kept = args.folder / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name, (count, do) in kinds.items():
        for case in range(count):
            key = f"{name}, {case}"
            if key not in results:
                results[key] = bool(do(args.folder / "case", straight, random.Random(key)))
                kept.write_text(json.dumps(results, indent=1))
        ended = [results[f"{name}, {case}"] for case in range(count)]
        print(f"{name:24} {sum(ended)} of {count} as promised", flush=True)


if __name__ == "__main__":
    main()
