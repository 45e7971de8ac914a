"""The switches of the paper's ablation on scenes with damaged captions: trains, prints a table.

    python docs/noise_experiment.py FOLDER [--seeds 3] [--jobs 2]

One run per switch and seed of configs/demo.py:noise, each in its own work directory in FOLDER.
Started again, it goes on where it was stopped. With several jobs every run has some of the cores.
"""

import argparse
import pathlib

from runs import Run, last_values, markdown, spread, train_all

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


def main():
    """Runs what is missing and prints a markdown table: mean (least to largest) over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    folders = {name: [args.folder / f"{name.split(' (')[0].replace(' ', '_')}_{seed}"
                      for seed in range(args.seeds)] for name in SWITCHES}
    train_all({folder: Run("configs/demo.py:noise",
                           switches=(f"--config.seed={seed}", *SWITCHES[name]))
               for name, runs in folders.items() for seed, folder in enumerate(runs)}, args.jobs)
    rows = []
    for name, runs in folders.items():
        values = [last_values(folder, COLUMNS["t2i R@1"]) for folder in runs]
        rows.append([name, *(spread([one[key] for one in values]) for key in COLUMNS.values())])
    print(markdown(["training", *COLUMNS], rows))


if __name__ == "__main__":
    main()
