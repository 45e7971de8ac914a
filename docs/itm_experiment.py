"""What lets ITM learn from random weights, on Flickr8k: trains, writes a table.

    python docs/itm_experiment.py FOLDER --data FLICKR8K [--seeds 3] [--jobs 2] [--write docs/results.md]

A run of configs/flickr8k.py per row and seed, each in its own work directory in FOLDER, an hour on one
core. Started again it goes on where it was stopped; `--table` prints what there is and says what is
missing.
"""

import argparse
import pathlib

from runs import Run, last_values, markdown, spread, train_all, write_between_marks

DROPOUT = ("--config.model.dropout=0.1", "--config.model.attention_dropout=0.1")
HARD = ("--config.objective.random_negatives=0.0",)
ALONE = ("--config.objective.match_weight=1.0",)  # a pair weighs half of its two negatives
ROWS = {
    "the config: half of the negatives random, pairs weigh as much as they, no dropout": (),
    "as published: hard negatives, dropout 0.1": (*HARD, *ALONE, *DROPOUT),
    "hard negatives": HARD,
    "a quarter random": ("--config.objective.random_negatives=0.25",),
    "all random": ("--config.objective.random_negatives=1.0",),
    "a pair weighs half": ALONE,
    "with dropout 0.1": DROPOUT,
}
COLUMNS = {
    "ITM, random negatives": ("matching/itm_accuracy_random",),
    "ITM, hard negatives": ("matching/itm_accuracy_hard",),
    "R@10 by ITC": ("retrieval/itc_i2t_r10", "retrieval/itc_t2i_r10"),
    "16 re-ranked by ITM": ("matched/i2t_r10", "matched/t2i_r10"),
    "16 re-ranked by the sum": ("retrieval/i2t_r10", "retrieval/t2i_r10"),
    "masked words": ("masked/mlm_top1",)}


def runs_of(folder, data, seeds):
    """Work directory -> its `Run`, all rows of one seed before the next."""
    at_the_end = [f"--config.evals.{name}.every=0" for name in ("retrieval", "matching", "masked")]
    return {place(folder, row, seed): Run(
        f"configs/flickr8k.py:{data}", switches=(
            f"--config.seed={seed}", "--config.data.engine=pillow", "--config.log_every=30",
            *at_the_end, *switches))
        for seed in range(seeds) for row, switches in enumerate(ROWS.values())}


def place(folder, row, seed):
    """The work directory of a row."""
    return folder / f"row{row}_{seed}"


def table(folder, seeds):
    """Mean (least to largest) over the seeds that are there, and how many these are."""
    rows = []
    for row, name in enumerate(ROWS):
        done = []
        for seed in range(seeds):
            try:
                done.append(last_values(place(folder, row, seed), "matching/itm_accuracy_hard"))
            except (FileNotFoundError, StopIteration):
                continue
        cells = [" / ".join(spread([values[key] for values in done]) for key in keys)
                 if done else "-" for keys in COLUMNS.values()]
        rows.append([name, f"{len(done)} of {seeds}", *cells])
    return markdown(["negatives", "seeds", *COLUMNS], rows)


def main():
    """Runs what is missing, prints the table and writes it where wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--data", default="data/flickr8k")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print what there is")
    parser.add_argument("--write", type=pathlib.Path)
    args = parser.parse_args()
    if not args.table:
        train_all(runs_of(args.folder, args.data, args.seeds), args.jobs)
    print(table(args.folder, args.seeds))
    if args.write:
        write_between_marks(args.write, "itm_experiment", table(args.folder, args.seeds))


if __name__ == "__main__":
    main()
