"""ImageBERT on rendered scenes, three seeds each: trains what is missing, and writes the tables.

    python docs/imagebert_experiment.py FOLDER [--seeds 3] [--jobs 2] [--write docs/results.md]

Each line of `VARIANTS` is pre-trained by configs/demo_imagebert.py and then fine-tuned by its variant
`retrieval`, in work directories `NAME_SEED` and `NAME_SEED_retrieval` of FOLDER; each of `LOSSES`
fine-tunes `stages`. Started again, it goes on where it was stopped.
"""

from runs import Run, experiment, last_values, markdown, spread, train_all

CONFIG = "configs/demo_imagebert.py"
# Name -> what it is called, the variant of the config, switches of the pre-training, and of both.
VARIANTS = {
    "stages": ("two stages: many noisy scenes, then few clean ones", "", (), ()),
    "many": ("the first stage alone", ":many", (), ()),
    "few": ("the second stage alone", ":few", (), ()),
    "few_long": ("the clean scenes alone, as many steps as both stages", ":few",
                 ("--config.steps=3000",), ()),
    "mixed": ("both at once, as many steps", ":mixed", (), ()),
    "no_mrfr": ("two stages without MRFR", "", ("--config.objective.mrfr=0.0",), ()),
    "four": ("two stages, 4 regions instead of 10", "", (), ("--config.data.regions_length=4",))}
# Name -> weights of the losses of fine-tuning.
LOSSES = {"binary": (1.0, 0.0, 0.0), "multiclass": (0.0, 1.0, 0.0), "triplet": (0.0, 0.0, 1.0)}
KEYS = {"texts, R@1": "retrieval/i2t_r1", "texts, R@5": "retrieval/i2t_r5",
        "images, R@1": "retrieval/t2i_r1", "images, R@5": "retrieval/t2i_r5"}


def runs_of(folder, seeds):
    """Work directory -> its `Run`; a pre-training comes before the runs that start from it."""
    runs = {}
    for seed in range(seeds):
        own = f"--config.seed={seed}"
        for name, (_, variant, first, both) in VARIANTS.items():
            start = folder / f"{name}_{seed}"
            runs[start] = Run(CONFIG + variant, None, (own, *first, *both))
            runs[folder / f"{name}_{seed}_retrieval"] = Run(f"{CONFIG}:retrieval", start,
                                                            (own, *both))
        for name, weights in LOSSES.items():
            if name != "binary":  # that of the lines above
                runs[folder / f"{name}_{seed}_retrieval"] = Run(
                    f"{CONFIG}:retrieval", folder / f"stages_{seed}", (own, *(
                        f"--config.objective.{loss}={weight}"
                        for loss, weight in zip(LOSSES, weights))))
    return runs


def train_missing(folder, seeds, jobs):
    """Makes what the tables are of."""
    train_all(runs_of(folder, seeds), jobs)


def measured(folder, name, seeds, key):
    """A value of the runs of all seeds, as text."""
    return spread([last_values(folder / name.format(seed), key)[key] for seed in range(seeds)])


def pretrainings(folder, seeds):
    """The table of pre-trainings: after fine-tuning, and before."""
    rows = [[title, *(measured(folder, name + "_{}_retrieval", seeds, key)
                      for key in KEYS.values()),
             *(measured(folder, name + "_{}", seeds, KEYS[key])
               for key in ("texts, R@1", "images, R@1"))]
            for name, (title, *_) in VARIANTS.items()]
    return markdown(["pre-training", *KEYS, "texts, R@1, not fine-tuned",
                     "images, R@1, not fine-tuned"], rows)


def losses(folder, seeds):
    """The table of losses of fine-tuning."""
    rows = [[name, *(measured(folder, ("stages" if name == "binary" else name) + "_{}_retrieval",
                              seeds, key) for key in KEYS.values())] for name in LOSSES]
    return markdown(["loss of fine-tuning", *KEYS], rows)


if __name__ == "__main__":
    experiment(__doc__, train_missing, {"imagebert_stages": pretrainings,
                                        "imagebert_losses": losses})
