"""The embedded data set of rendered scenes as a source."""

import functools
import json
from collections.abc import Iterator

import numpy as np

from albef_jax.data.sources.base import Source, pairs
from albef_jax.errors import UserError
from albef_jax.scenes.captions import damage, is_true
from albef_jax.scenes.generate import CAPTIONS, VERSION
from albef_jax.scenes.graph import SPLITS, pick, scene_rng
from albef_jax.scenes.levels import LEVELS, get_level
from albef_jax.scenes.parsing import parse
from albef_jax.scenes.vocabulary import task_words

WORD_COPIES = 100  # of the tasks' words, so that a tokenizer keeps them whole
REMEMBERED = 4096  # scenes whose parsed captions and graphs are kept


class ScenesSource(Source):
    """Rendered scenes with captions whose truth is known; a pure function of seed and index.

    They are made on first use and stored. Noise is added to the captions when they are read: one
    stored set serves all levels of noise, and the graphs stay true.

    Args:
        level: "demo" or "full".
        split: "train", or "heldout": kinds of objects (colour, shape, texture) that training never
            shows.
        size: number of scenes. seed: of the scenes.
        swapped, damaged: shares of captions of another scene, and with wrong or missing words.
        data_dir: where they are stored; by default `albef_jax/tfds` in the user's cache.

    Raises:
        UserError: an option is unknown or out of range, or the scenes cannot be stored.
    """

    fields = pairs()
    limits = dict(size=(1, None), seed=(0, 2**32 - 1), swapped=(0.0, 1.0), damaged=(0.0, 1.0))
    choices = dict(level=(*LEVELS,), split=(*SPLITS,))

    def __init__(self, level: str = "demo", split: str = "train", size: int = 20000, seed: int = 0,
                 swapped: float = 0.0, damaged: float = 0.0, data_dir: str = ""):
        self._level = get_level(level)
        self._split, self._size, self._seed = split, size, seed
        self._swapped, self._damaged = swapped, damaged
        self._captions = functools.lru_cache(REMEMBERED)(self._read_captions)
        self.graph = functools.lru_cache(REMEMBERED)(self._read_graph)
        from albef_jax.scenes.builder import open_scenes  # TFDS takes a second to import

        self._records = open_scenes(level, split, size, seed, data_dir)
        self.fingerprint = (f"scenes {VERSION} {level} {split} size={size} seed={seed} "
                            f"swapped={swapped} damaged={damaged}")

    @classmethod
    def check(cls, swapped=0.0, damaged=0.0, **others):
        """The sum of the shares of noise; see `Source.check`."""
        if swapped + damaged > 1:
            raise UserError("A scenes source needs shares of noise with a sum of at most 1, not "
                            f"swapped={swapped} and damaged={damaged}.")

    @classmethod
    def options(cls, text: str) -> dict:
        level, _, split = text.partition(":")
        if level == "products":
            return {"kind": "scenes_products", "split": split or "train"}
        return {"level": level, "split": split or "train"}

    def __len__(self) -> int:
        return self._size

    def name(self, index: int) -> str:
        return f"scenes/{self._level.name}/{self._split}[{index}]"

    def image_id(self, index: int) -> int:
        return index

    def image(self, index: int) -> np.ndarray:
        return self._records[index]["image"]

    def text(self, index: int) -> list[str]:
        return [text for text, _ in self._captions(index)]

    def form(self, index: int, caption: int) -> dict:
        """What a caption claims, see `scenes.captions`; also of a wrong one."""
        return self._captions(index)[caption][1]

    def describes(self, owner: int, caption: int, index: int) -> bool:
        return is_true(self.form(owner, caption), self.graph(index))

    def truth(self, index: int, text: str) -> bool | None:
        form = parse(text)
        return form and is_true(form, self.graph(index))

    def words(self, step: int = 1) -> Iterator[str]:
        """Captions, and the words of the tasks on scenes: all learn with one vocabulary."""
        for index in range(0, self._size, step):
            yield from (text for text, _ in self._captions(index))
        yield from WORD_COPIES * task_words(self._level)

    def _read_graph(self, index: int) -> dict:
        """The scene graph, see `scenes.graph`."""
        return json.loads(self._records[index]["graph"])

    def _read_clean(self, index: int) -> list[tuple[str, dict]]:
        record = self._records[index]
        texts = [text.decode() for text in record["captions"]]
        return list(zip(texts, json.loads(record["forms"])))

    def _read_captions(self, index: int) -> list[tuple[str, dict]]:
        """Texts and forms, noise included."""
        captions = self._read_clean(index)
        if not self._swapped + self._damaged:
            return captions
        rng = scene_rng(self._seed, self._split, index, 2)
        for number, draw in enumerate(rng.random(CAPTIONS).tolist()):
            if draw < self._swapped and self._size > 1:
                other = (index + 1 + int(rng.random() * (self._size - 1))) % self._size
                captions[number] = pick(rng, self._read_clean(other))
            elif draw < self._swapped + self._damaged:
                captions[number] = damage(captions[number], self.graph(index), self._level, rng)
        return captions
