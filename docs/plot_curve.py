"""Draws the curves of runs: `python docs/plot_curve.py OUT.png WORKDIR [WORKDIR ...]`."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = {
    "losses": {"itc": "ITC", "mlm": "MLM", "itm": "ITM"},
    "held-out retrieval, %": {"retrieval/itc_i2t_r10": "image to text R@10, by ITC",
                              "retrieval/itc_t2i_r10": "text to image R@10, by ITC",
                              "retrieval/i2t_r10": "image to text R@10, re-ranked",
                              "retrieval/t2i_r10": "text to image R@10, re-ranked"},
    "held-out accuracy, %": {"matching/itm_accuracy_random": "ITM, random negatives",
                             "matching/itm_accuracy_hard": "ITM, hard negatives",
                             "masked/mlm_top1": "MLM top-1", "masked/mlm_top5": "MLM top-5"},
}
LINES = ("-", "--", ":", "-.")  # one per run


def main(out, *workdirs):
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.6), constrained_layout=True)
    for workdir, line in zip(map(pathlib.Path, workdirs), LINES):
        rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
        run = f", {workdir.name}" if len(workdirs) > 1 else ""
        for axis, curves in zip(axes, PANELS.values()):
            for colour, (name, label) in zip(plt.rcParams["axes.prop_cycle"], curves.items()):
                points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
                if points:
                    axis.plot(*zip(*points), line, label=label + run, markersize=3,
                              marker="o" if "/" in name else None, **colour)
    for axis, title in zip(axes, PANELS):
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_yscale("log")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
