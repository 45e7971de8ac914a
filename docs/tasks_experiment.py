"""What pre-training and the pictures are worth on the scenes' tasks: trains, then writes a table.

    python docs/tasks_experiment.py FOLDER [--init runs/demo] [--jobs 2] [--write docs/results.md]

FOLDER holds (or gets) a work directory per task of configs/demo_tasks.py, fine-tuned from the run
`--init`. Beside it come the same run from random weights (`TASK_scratch`) and, where a text alone
could tell something, from the same weights with black pictures (`TASK_blind`). Started again, it
goes on where it was stopped. With `--write` the table replaces the one in that file.
"""

import argparse
import pathlib

from runs import Run, last_values, markdown, train_all, write_between_marks

# Task -> its metrics, each with what knowing nothing is worth: another metric's name, percent, or
# None where it says nothing.
METRICS = {
    "retrieval": {"retrieval/i2t_r1": 100 * 5 / 2560, "retrieval/t2i_r1": 100 / 512},
    "vqa": {"vqa/vqa_accuracy": "vqa/majority"},
    "nlvr": {"nlvr/accuracy": "nlvr/majority"},
    "ve": {"ve/accuracy": "ve/majority"},
    "grounding": {"grounding/pointing_game": "grounding/pointing_random",
                  "grounding/iou_0.5": "grounding/iou_0.5_random"},
    "captions": {"captions/true": "captions/true_of_another", "captions/nonsense": None},
}
BLIND = ("vqa", "nlvr", "ve", "captions")
STARTS = {"nlvr": "nlvr_pretrain"}  # others start from the pre-training


def runs_of(folder, init):
    """Work directory -> its `Run`, in an order in which every start is there."""
    tokenizer = f"--config.data.tokenizer={init}/tokenizer"

    def run(task, start, *switches):
        return Run(f"configs/demo_tasks.py:{task}", start, switches)

    runs = {folder / "nlvr_pretrain": run("nlvr_pretrain", init)}
    for task in METRICS:
        start = folder / STARTS[task] if task in STARTS else init
        runs[folder / task] = run(task, start)
        runs[folder / f"{task}_scratch"] = run(task, None, tokenizer)
        if task in BLIND:
            runs[folder / f"{task}_blind"] = run(task, start, "--config.data.blind=True")
    return runs


def table(folder):
    """The rows of the results as markdown."""
    rows = []
    for task, metrics in METRICS.items():
        for key, nothing in metrics.items():
            runs = {name: last_values(folder / name, key)
                    for name in (task, f"{task}_scratch", f"{task}_blind")
                    if (folder / name).is_dir()}
            base = runs[task][nothing] if isinstance(nothing, str) else nothing
            base = "-" if base is None else f"{base:.1f}"
            cells = [f"{runs[name][key]:.1f}" if name in runs else "-"
                     for name in (task, f"{task}_scratch", f"{task}_blind")]
            rows.append([task, key.split("/")[1], *cells, base])
    return markdown(["task", "metric", "fine-tuned", "from scratch, same steps", "blind",
                     "knowing nothing"], rows)


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
        train_all(runs_of(args.folder, args.init), args.jobs)
    print(table(args.folder))
    if args.write:
        write_between_marks(args.write, "tasks_experiment", table(args.folder))


if __name__ == "__main__":
    main()
