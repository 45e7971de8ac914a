"""A tiny ImageBERT on made-up regions, a file that `albef train --config` reads."""

from pathlib import Path

import numpy as np

from albef_jax.config import default_config
from albef_jax.data.sources.base import Source
from albef_jax.data.sources.regions import Regions

HERE = Path(__file__)
THINGS = ("apple", "ball", "cup", "drum", "egg", "fork", "glass", "hat")
WIDTH = 12


class Shelves(Source):
    """Shelves with two to four different things; a region is the code of one, and noise.

    Args:
      size: number of shelves, all different. seed: of the noise. wrong: share of captions that are
        of another shelf. with_picture: whether there is a feature of the whole shelf, too.
    """

    def __init__(self, size, seed=0, wrong=0.0, with_picture=False):
        self.fields = {"text": {}, "image_id": {}, "regions": {"width": WIDTH,
                                                               "class_names": THINGS}}
        if with_picture:
            self.fields["global_feature"] = {}
        self._size, self._seed, self._wrong = size, seed, wrong
        self.fingerprint = f"shelves {size} {seed} {wrong} {with_picture}"

    def __len__(self):
        return self._size

    def name(self, index):
        return f"shelf {index}"

    def things(self, index):
        """The numbers of what is on a shelf, from left to right."""
        rng = np.random.default_rng([1, index])
        return rng.permutation(len(THINGS))[:rng.integers(2, 5)]

    def image_id(self, index):
        return index

    def text(self, index):
        rng = np.random.default_rng([2, self._seed, index])
        shelf = int(rng.integers(self._size)) if rng.random() < self._wrong else index
        names = [THINGS[thing] for thing in self.things(shelf)]
        return [f"a shelf with {' then '.join(names)}", f"there is {' and '.join(names)}"]

    def regions(self, index):
        things = self.things(index)
        rng = np.random.default_rng([3, self._seed, index])
        codes = np.random.default_rng(4).normal(size=(len(THINGS), WIDTH))
        features = codes[things] + 0.1 * rng.normal(size=(len(things), WIDTH))
        left = 20.0 * np.arange(len(things))
        boxes = np.stack([left, 0 * left + 5, left + 15, 0 * left + 30], axis=1)
        return Regions(features.astype(np.float32), boxes, (100, 40), things,
                       np.linspace(0.9, 0.6, len(things)))

    def global_feature(self, index):
        return self.regions(index).features.mean(axis=0)


def get_config(variant=None):
    """float32, two groups of 8 pairs. 'retrieval': the other task; 'stages': two; 'learn': what is
    learned in 600 steps."""
    config = default_config("imagebert_retrieval" if variant == "retrieval"
                            else "imagebert_pretrain")
    config.batch_size, config.group_size = 16, 8
    config.steps, config.log_every = 20, 1
    config.model.update(text_width=32, text_layers=2, text_heads=2, text_mlp_width=64,
                        max_positions=32, dtype="float32", init_std=0.1, classes=len(THINGS))
    config.optimizer.update(peak_lr=2e-3, warmup_share=0.1)
    config.data.update(text_length=12, vocab_size=100, workers=2, regions_length=4,
                       regions_width=WIDTH)
    config.data.source = dict(kind=f"{HERE}:Shelves", size=48)
    config.checkpoint.update(every=8)
    held_out = dict(kind=f"{HERE}:Shelves", size=24, seed=1)
    config.evals.dev = dict(kind="pair_retrieval", source=held_out, batch_size=16, folds=2)
    if variant == "stages":
        config.evals = {}
        noisy = dict(kind=f"{HERE}:Shelves", size=80, wrong=0.4)
        config.stages = (
            dict(name="noisy", steps=12, data=dict(source=noisy)),
            dict(name="clean", steps=8, optimizer=dict(peak_lr=5e-4, warmup_share=0.0),
                 objective=dict(masking="conditional", mrfr=0.0)))
    if variant == "learn":
        config.batch_size = config.group_size = 32
        config.steps, config.log_every, config.checkpoint.every = 600, 10, 1000
        config.model.update(text_width=64, text_heads=4, text_mlp_width=128, dropout=0.0,
                            attention_dropout=0.0)
        config.optimizer.peak_lr = 3e-3
        config.data.source.size = 64
        config.evals.dev.source.size = 64
    return config
