"""Cleaning 40% wrong captions of rendered scenes, three seeds: trains, scores, cleans, trains again.

    python docs/clean_experiment.py FOLDER [--seeds 3] [--jobs 2] [--write docs/results.md]

FOLDER gets the pairs as files, and for each seed `all_SEED`, a run of configs/demo.py on all captions
with random negatives (hard ones keep the matching head on its plateau, see docs/results.md); what
`albef score` with it and `albef data clean` make of them; and `clean_SEED`, a run of as many steps on
what is left. How well scores tell captions of another scene (swapped) and captions with
wrong words (damaged) from true ones is measured as AUROC. Started again, it goes on.
"""

import json
import subprocess

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from albef_jax.data.sources import make_source
from runs import ALBEF, Run, experiment, last_values, markdown, spread, train_all

NOISE = dict(swapped=0.2, damaged=0.2)
SCENES = dict(kind="scenes", level="demo", split="train", size=20_000)
SWITCHES = ("--config.steps=2400", "--config.objective.negatives=random")
LEAST_ITM = 0.5
SCORES = ("itc", "itm")
COLUMNS = {"i2t R@1": "retrieval/i2t_r1", "t2i R@1": "retrieval/t2i_r1",
           "ITM, hard": "matching/itm_accuracy_hard", "ITM, random": "matching/itm_accuracy_random",
           "colour and shape words": "masked/mlm_top1_words"}


def write_pairs(folder):
    """The scenes as images, and a manifest of their noisy captions, unless they are there."""
    manifest, source = folder / "pairs.json", make_source({**SCENES, **NOISE})
    if manifest.exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in range(len(source)):
        Image.fromarray(source.image(index)).save(folder / "images" / f"{index:05d}.png")
    rows = [{"image": f"images/{index:05d}.png", "caption": text}
            for index in range(len(source)) for text in source.text(index)]
    manifest.write_text(json.dumps(rows))


def kinds_of_captions():
    """Of each row of the manifest: 'true', 'swapped' or 'damaged'."""
    noisy, swapped, clean = (make_source({**SCENES, **noise}) for noise in (
        NOISE, {"swapped": NOISE["swapped"]}, {}))
    kinds = []
    for index in range(len(clean)):
        for number, text in enumerate(noisy.text(index)):
            if text == clean.text(index)[number] or noisy.describes(index, number, index):
                kinds.append("true")
            else:
                kinds.append("swapped" if text == swapped.text(index)[number] else "damaged")
    return np.array(kinds)


def train_and_clean(folder, seeds, jobs):
    """All runs, and the scores and cleaned manifests between them."""
    write_pairs(folder)

    def runs(name, manifest):
        return {folder / f"{name}_{seed}": Run("configs/demo.py:noise", None, (
            *SWITCHES, f"--config.seed={seed}", f"--config.data.source=json:{folder / manifest.format(seed)}"))
            for seed in range(seeds)}

    train_all(runs("all", "pairs.json"), jobs)
    for seed in range(seeds):
        scored, clean = folder / f"scored_{seed}.jsonl", folder / f"clean_{seed}.json"
        if not scored.exists():
            subprocess.run([ALBEF, "score", folder / f"all_{seed}", folder / "pairs.json", "--out",
                            scored, "--batch-size", "256"], check=True)
        if not clean.exists():
            subprocess.run([ALBEF, "data", "clean", scored, "--out", clean, "--best=off",
                            "--max-rare=off", "--max-images=off", f"--itm={LEAST_ITM}"], check=True)
    train_all(runs("clean", "clean_{}.json"), jobs)


def separation(folder, seeds):
    """The table of AUROC: true captions against swapped ones, and against damaged ones."""
    kinds, rows = kinds_of_captions(), []
    for name in SCORES:
        areas = {kind: [] for kind in ("swapped", "damaged")}
        for seed in range(seeds):
            lines = (folder / f"scored_{seed}.jsonl").read_text().splitlines()
            scores = np.array([json.loads(line)[name] for line in lines])
            for kind, values in areas.items():
                some = np.isin(kinds, ("true", kind))
                values.append(100 * roc_auc_score(kinds[some] == "true", scores[some]))
        rows.append([name, *map(spread, areas.values())])
    return markdown(["score", "true against swapped", "true against damaged"], rows)


def trainings(folder, seeds):
    """The table of runs: on all captions, and on those that were left."""
    kinds, shares = kinds_of_captions(), {"all": [], "clean": []}
    for seed in range(seeds):
        left = {(row["image"], row["caption"])
                for row in json.loads((folder / f"clean_{seed}.json").read_text())}
        pairs = json.loads((folder / "pairs.json").read_text())
        kept = np.array([(row["image"], row["caption"]) in left for row in pairs])
        for name, some in (("all", np.ones_like(kept)), ("clean", kept)):
            shares[name].append((some.sum(), 100 * np.mean(kinds[some] == "true")))
    rows = []
    for name, title in (("all", "all captions"), ("clean", "those that are left")):
        values = [last_values(folder / f"{name}_{seed}", COLUMNS["t2i R@1"])
                  for seed in range(seeds)]
        counts, true = zip(*shares[name])
        rows.append([title, f"{np.mean(counts):,.0f}", spread(true),
                     *(spread([one[key] for one in values]) for key in COLUMNS.values())])
    return markdown(["training", "captions", "of them true", *COLUMNS], rows)


if __name__ == "__main__":
    experiment(__doc__, train_and_clean, {"clean_scores": separation, "clean_runs": trainings})
