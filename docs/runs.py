"""Runs of the experiments in this folder: trains what is missing, and makes tables of the values."""

import argparse
from concurrent.futures import ThreadPoolExecutor
import json
import os
import pathlib
import queue
import re
import subprocess
import sys
from typing import NamedTuple

import numpy as np

ALBEF = pathlib.Path(sys.executable).with_name("albef")


class Run(NamedTuple):
    """One `albef train`: the config with its variant, the run that it starts from, and overrides."""

    config: str
    init: pathlib.Path | None = None
    switches: tuple[str, ...] = ()


def train_all(runs, jobs):
    """Trains the `Run` of each work directory, some at a time, each on its share of the cores.

    What is complete is left alone, what was stopped goes on, and a run waits for the one that it
    starts from, which stands before it. What a run says is in `WORKDIR.log`.
    """
    free, done = queue.SimpleQueue(), {}
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), jobs):
        free.put(cores.tolist())

    def train(workdir, run):
        if run.init in done:
            done[run.init].result()
        cores = free.get()
        print(f"{workdir} ...", file=sys.stderr, flush=True)
        try:
            _train(workdir, run, cores)
        finally:
            free.put(cores)

    with ThreadPoolExecutor(len(runs)) as pool:  # one that waits for another holds no core
        for workdir, run in runs.items():
            workdir.parent.mkdir(parents=True, exist_ok=True)
            done[workdir] = pool.submit(train, workdir, run)
    for future in done.values():
        future.result()


def _train(workdir, run, cores):
    command = [ALBEF, "train", "--config", run.config,
               "--workdir", str(workdir), *run.switches,
               *(["--init", str(run.init)] if run.init else [])]
    with open(f"{workdir}.log", "a") as log:
        subprocess.run(command, check=True, stderr=log, stdout=log,
                       preexec_fn=lambda: os.sched_setaffinity(0, cores))


def last_values(workdir, key):
    """The last evaluation of a run that measured `key`: `evaluator/name` -> percent."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, reversed(lines)) if key in row)


def spread(values):
    """Values of several seeds as 'mean (least-largest)'."""
    return f"{np.mean(values):.1f} ({np.min(values):.1f}-{np.max(values):.1f})"


def markdown(head, rows):
    """A table; `rows` of texts."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def write_between_marks(path, name, text):
    """Replaces what stands between the lines `<!-- NAME -->` and `<!-- /NAME -->` of a file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = path.read_text()
    if begin not in old or end not in old:
        sys.exit(f"{path} has no lines {begin} and {end}; add them where the table shall be.")
    path.write_text(re.sub(f"({re.escape(begin)}\n).*?({re.escape(end)})",
                           lambda match: f"{match[1]}{text}\n{match[2]}", old, flags=re.S))


def experiment(about, make, tables):
    """The command of an experiment: makes what is missing, prints tables, writes them if wanted.

    Args:
      about: its docstring. make: a function of folder, number of seeds, number of jobs.
      tables: name of the marks in the file -> function of folder and number of seeds, which gives
        the table as markdown.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    make(args.folder, args.seeds, args.jobs)
    for name, table in tables.items():
        text = table(args.folder, args.seeds)
        print(text, end="\n\n")
        if args.write:
            write_between_marks(args.write, name, text)
