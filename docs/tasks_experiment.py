"""What pre-training and the pictures are worth on the scenes' tasks: trains, then writes a table.

    python docs/tasks_experiment.py FOLDER [--init runs/demo] [--jobs 2] [--write docs/results.md]

FOLDER holds (or gets) a work directory per task of configs/demo_tasks.py, fine-tuned from the run
`--init`. Beside it come the same run from random weights (`TASK_scratch`) and, where a text alone
could tell something, from the same weights with black pictures (`TASK_blind`). Started again, it
goes on where it was stopped. With `--write` the table replaces the one in that file.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import json
import os
import pathlib
import queue
import re
import subprocess
import sys

import numpy as np

# Task -> its metrics, each with what knowing nothing is worth: another metric's name, or percent.
METRICS = {
    "retrieval": {"retrieval/i2t_r1": 100 * 5 / 2560, "retrieval/t2i_r1": 100 / 512},
    "vqa": {"vqa/vqa_accuracy": "vqa/majority"},
    "nlvr": {"nlvr/accuracy": "nlvr/majority"},
    "ve": {"ve/accuracy": "ve/majority"},
    "grounding": {"grounding/pointing_game": "grounding/pointing_random",
                  "grounding/iou_0.5": "grounding/iou_0.5_random"},
}
BLIND = ("vqa", "nlvr", "ve")
STARTS = {"nlvr": "nlvr_pretrain"}  # others start from the pre-training
MARKS = ("<!-- tasks_experiment -->", "<!-- /tasks_experiment -->")


def train(task, folder, init, cores, switches=()):
    """Trains one run on some cores; does nothing if it is complete."""
    command = [pathlib.Path(sys.executable).with_name("albef"), "train",
               "--config", f"configs/demo_tasks.py:{task}", "--workdir", str(folder), *switches,
               *(["--init", str(init)] if init else [])]
    with open(f"{folder}.log", "a") as log:
        subprocess.run(command, check=True, stderr=log, stdout=log,
                       preexec_fn=lambda: os.sched_setaffinity(0, cores))


def last_values(folder, key):
    """The last evaluation of a run that measured `key`: `evaluator/name` -> percent."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, reversed(lines)) if key in row)


def jobs_of(folder, init):
    """Name -> (task, where it starts, switches), in an order in which every start is there."""
    tokenizer = f"--config.data.tokenizer={init}/tokenizer"
    jobs = {"nlvr_pretrain": ("nlvr_pretrain", init, ())}
    for task in METRICS:
        start = folder / STARTS[task] if task in STARTS else init
        jobs[task] = (task, start, ())
        jobs[f"{task}_scratch"] = (task, None, (tokenizer,))
        if task in BLIND:
            jobs[f"{task}_blind"] = (task, start, ("--config.data.blind=True",))
    return jobs


def table(folder):
    """The rows of the results as markdown."""
    lines = ["| task | metric | fine-tuned | from scratch, same steps | blind | knowing nothing |",
             "|---|---|---|---|---|---|"]
    for task, metrics in METRICS.items():
        for key, nothing in metrics.items():
            runs = {name: last_values(folder / name, key)
                    for name in (task, f"{task}_scratch", f"{task}_blind")
                    if (folder / name).is_dir()}
            base = runs[task][nothing] if isinstance(nothing, str) else nothing
            cells = [f"{runs[name][key]:.1f}" if name in runs else "-"
                     for name in (task, f"{task}_scratch", f"{task}_blind")]
            lines.append(f"| {task} | {key.split('/')[1]} | {' | '.join(cells)} | {base:.1f} |")
    return "\n".join(lines)


def write_between_marks(path, text):
    """Replaces what stands between the marks of a file."""
    begin, end = map(re.escape, MARKS)
    old = path.read_text()
    new = re.sub(f"({begin}\n).*?({end})", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S)
    if MARKS[0] not in old:
        sys.exit(f"{path} has no line {MARKS[0]}; add it and {MARKS[1]} where the table shall be.")
    path.write_text(new)


def main():
    """Runs what is missing, prints the table and writes it where wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--init", type=pathlib.Path, default=pathlib.Path("runs/demo"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    if not args.table:
        run_all(args.folder, args.init, args.jobs)
    print(table(args.folder))
    if args.write:
        write_between_marks(args.write, table(args.folder))


def run_all(folder, init, count):
    """Trains what is missing, `count` runs at a time, each on its share of the cores."""
    folder.mkdir(parents=True, exist_ok=True)
    free = queue.SimpleQueue()
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), count):
        free.put(cores.tolist())
    jobs, done = jobs_of(folder, init), {}

    def run(name):
        task, start, switches = jobs[name]
        if start and start.name in done:
            done[start.name].result()
        cores = free.get()
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            train(task, folder / name, start, cores, switches)
        finally:
            free.put(cores)

    with ThreadPoolExecutor(count) as pool:
        for name in jobs:
            done[name] = pool.submit(run, name)
    for future in done.values():
        future.result()


if __name__ == "__main__":
    main()
