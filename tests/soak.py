"""A long training of a tiny model: memory, threads, open files and disk as it goes; prints a table.

    python tests/soak.py FOLDER [--steps 10000]

A run of tests/tiny.py with a save every 100 and both evaluations every 500 steps. Linux only: what a
process holds is read from /proc. Started again, the run goes on, and the table with it.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

CONFIG = pathlib.Path(__file__).with_name("tiny.py")
SECONDS = 1.0  # between two looks
ROWS = 10


def held_by(process, workdir):
    """What a process holds now, and what its work directory takes; None when it has ended."""
    proc = pathlib.Path("/proc", str(process.pid))
    try:
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        files = [path.stat().st_size for path in workdir.rglob("*") if path.is_file()]
        return {"memory MB": int(status["VmRSS"].split()[0]) // 1024,
                "threads": int(status["Threads"]), "open files": len(list((proc / "fd").iterdir())),
                "files": len(files), "disk MB": round(sum(files) / 1e6, 1)}
    except (OSError, KeyError):  # it ended, or a checkpoint was renamed while we looked
        return None


def train(workdir, steps, seen):
    """Trains to the end and looks on; whether that went well."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from albef_jax.cli import main; sys.exit(main())",
         "train", "--config", f"{CONFIG}:learn", "--workdir", workdir, f"--config.steps={steps}",
         "--config.checkpoint.every=100", "--config.evals.dev.every=500",
         "--config.evals.words.every=500"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    looked = 0.0
    for line in process.stderr:
        step = re.match(r"step (\d+)/", line)
        if step and time.monotonic() - looked > SECONDS and (held := held_by(process, workdir)):
            looked = time.monotonic()
            with seen.open("a") as file:
                file.write(json.dumps({"step": int(step[1]), **held}) + "\n")
    return process.wait() == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    seen = args.folder / "seen.jsonl"
    ended = train(args.folder / "run", args.steps, seen)
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    print(f"{args.steps} steps {'ended well' if ended else 'FAILED'}")
    print(" | ".join(rows[0]))
    for part in range(1, ROWS + 1):
        until = args.steps * part // ROWS
        some = [row for row in rows if until - args.steps // ROWS < row["step"] <= until]
        most = {name: max(row[name] for row in some) for name in rows[0]} if some else {}
        print(" | ".join(str(value) for value in most.values()))


if __name__ == "__main__":
    main()
