"""Writes the curves of a run for others to compare theirs with (`albef report --against`).

    python docs/curves.py runs/demo docs/curves/demo.csv

Losses are means over stretches of steps; what evaluators measured stands at its step.
"""

import argparse
import csv
import pathlib

import numpy as np

from albef_jax.report.history import curve, read_history

STRETCHES = 60
LOSSES = ("loss", "itc", "itm", "mlm", "itm_accuracy", "mlm_accuracy")


def rows_of(workdir):
    """Step -> scalar -> value."""
    history, rows = read_history(workdir / "metrics.jsonl"), {}
    names = dict.fromkeys(name for _, values in history for name in values
                          if name in LOSSES or "/" in name)
    for name in names:
        steps, values = curve(history, name)
        if name in LOSSES:
            for stretch in np.array_split(np.arange(len(steps)), min(STRETCHES, len(steps))):
                rows.setdefault(int(steps[stretch[-1]]), {})[name] = values[stretch].mean()
        else:
            for step, value in zip(steps.tolist(), values):
                rows.setdefault(step, {})[name] = value
    return dict(sorted(rows.items()))


def main():
    """Reads the log of a run and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    rows = rows_of(args.workdir)
    names = dict.fromkeys(name for values in rows.values() for name in values)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *names])
        for step, values in rows.items():
            writer.writerow([step, *(f"{values[name]:.4g}" if name in values else ""
                                     for name in names)])


if __name__ == "__main__":
    main()
