"""The switches of the paper's ablation on scenes with damaged captions: trains, prints a table.

    python docs/noise_experiment.py FOLDER [--seeds 3] [--jobs 2]

One run per switch and seed of configs/demo.py:noise, each in its own work directory in FOLDER.
Started again, it goes on where it was stopped. With several jobs every run has some of the cores.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import json
import os
import pathlib
import queue
import subprocess
import sys

import numpy as np

SWITCHES = {
    "everything on": [],
    "momentum distillation off": ["--config.objective.alpha_itc=0.0",
                                  "--config.objective.alpha_mlm=0.0"],
    "random negatives": ["--config.objective.negatives=random"],
    "ITC off (with random negatives)": ["--config.objective.negatives=random",
                                        "--config.objective.itc=False"],
}
COLUMNS = {"i2t R@1": "retrieval/i2t_r1", "t2i R@1": "retrieval/t2i_r1",
           "ITM, hard": "matching/itm_accuracy_hard", "ITM, random": "matching/itm_accuracy_random",
           "colour and shape words": "masked/mlm_top1_words"}


def train(folder, switches, seed, cores):
    """Trains one run on some cores; does nothing if it is complete."""
    command = [pathlib.Path(sys.executable).with_name("albef"), "train",
               "--config", "configs/demo.py:noise", "--workdir", str(folder),
               f"--config.seed={seed}", *switches]
    with open(f"{folder}.log", "w") as log:
        subprocess.run(command, check=True, stderr=log, stdout=log,
                       preexec_fn=lambda: os.sched_setaffinity(0, cores))


def last_values(folder):
    """The last evaluation of a run: `evaluator/name` -> percent."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, reversed(lines)) if COLUMNS["t2i R@1"] in row)


def main():
    """Runs what is missing and prints a markdown table: mean (least to largest) over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    free = queue.SimpleQueue()
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), args.jobs):
        free.put(cores.tolist())

    def run(name, seed):
        folder, cores = args.folder / f"{name.split(' (')[0].replace(' ', '_')}_{seed}", free.get()
        train(folder, SWITCHES[name], seed, cores)
        free.put(cores)
        return last_values(folder)

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = {name: [pool.submit(run, name, seed) for seed in range(args.seeds)]
                for name in SWITCHES}
    print("| " + " | ".join(["training", *COLUMNS]) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, runs in rows.items():
        values = np.array([[future.result()[key] for key in COLUMNS.values()] for future in runs])
        cells = [f"{v.mean():.1f} ({v.min():.1f}-{v.max():.1f})" for v in values.T]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
