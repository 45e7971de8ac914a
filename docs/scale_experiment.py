"""SCALE on rendered products, three seeds each: trains what is missing, and writes the tables.

    python docs/scale_experiment.py FOLDER [--seeds 3] [--jobs 2] [--write docs/results.md]

Each line of `VARIANTS` is pre-trained by configs/demo_scale.py and then fine-tuned by its variant
`classify`, in work directories `NAME_SEED` and `NAME_SEED_classes` of FOLDER; `scratch` is the
latter from random weights. Started again, it goes on where it was stopped.
"""

from runs import Run, experiment, last_values, markdown, spread, train_all

SUBSETS = ("t", "ti", "tip", "tipv", "tipva")
NOISY = "--config.data.source.wrong=0.4"
OFF = "--config.objective.simcl_mode=off"  # of the pre-training alone
MISSING = "--config.model.missing_policy=zero_attend"
# Name -> what it is called, switches of both runs, and of the pre-training alone.
VARIANTS = {
    "all": ("all products; what is missing is not seen", (), ()),
    "zeros": ("all products; what is missing is zeros that count", (MISSING,), ()),
    "complete": ("products that have everything", ("--config.data.source.complete=True",), ()),
    "noisy": ("40% of the modalities are another product's, SIMCL on", (NOISY,), ()),
    "noisy_off": ("40% of the modalities are another product's, SIMCL off", (NOISY,), (OFF,))}
KEYS = {"category, accuracy": "accuracy/accuracy_{}", "category, mAP@1": "retrieval/coarse_{}_map1",
        "instance, mAP@1": "retrieval/fine_{}_map1"}


def runs_of(folder, seeds):
    """Work directory -> its `Run`; a pre-training comes before the run that starts from it."""
    runs = {}
    for seed in range(seeds):
        own = f"--config.seed={seed}"
        for name, (_, both, first) in VARIANTS.items():
            start = folder / f"{name}_{seed}"
            runs[start] = Run("configs/demo_scale.py", None, (own, *both, *first))
            runs[folder / f"{name}_{seed}_classes"] = Run(
                "configs/demo_scale.py:classify", start, (own, *both))
        runs[folder / f"scratch_{seed}_classes"] = Run(
            "configs/demo_scale.py:classify", None,
            (own, f"--config.data.tokenizer={folder}/all_{seed}/tokenizer"))
    return runs


def train_missing(folder, seeds, jobs):
    """Makes what the tables are of."""
    train_all(runs_of(folder, seeds), jobs)


def measured(folder, name, seeds, key):
    """A value of the runs of all seeds, as text."""
    return spread([last_values(folder / f"{name.format(seed)}", key)[key]
                   for seed in range(seeds)])


def modalities(folder, seeds):
    """The table of modalities: one more in each row, after fine-tuning and before."""
    rows = [[subset, *(measured(folder, "all_{}_classes", seeds, key.format(subset))
                       for key in KEYS.values()),
             measured(folder, "all_{}", seeds, KEYS["category, mAP@1"].format(subset)),
             measured(folder, "scratch_{}_classes", seeds, KEYS["category, accuracy"].format(subset))]
            for subset in SUBSETS]
    return markdown(["seen", *KEYS, "category, mAP@1, not fine-tuned",
                     "category, accuracy, from scratch"], rows)


def variants(folder, seeds):
    """What noise, SIMCL and missing modalities do, with all modalities seen and with titles only."""
    columns = {f"{name}, {subset}": key.format(subset) for subset in ("t", "tipva")
               for name, key in KEYS.items() if "instance" not in name}
    rows = [[title, *(measured(folder, name + "_{}_classes", seeds, key)
                      for key in columns.values()),
             measured(folder, name + "_{}", seeds, KEYS["category, mAP@1"].format("tipva"))]
            for name, (title, _, _) in VARIANTS.items()]
    return markdown(["training", *columns, "category, mAP@1, tipva, not fine-tuned"], rows)


if __name__ == "__main__":
    experiment(__doc__, train_missing, {"scale_modalities": modalities, "scale_variants": variants})
