"""Captions that are wrong on purpose: web data in small."""

from __future__ import annotations

import numpy as np

from albef_jax.scenes.captions import is_true, say
from albef_jax.scenes.graph import pick
from albef_jax.scenes.levels import Level


def damage(
    caption: tuple[str, dict], graph: dict, level: Level, rng: np.random.Generator
) -> tuple[str, dict]:
    """A caption with missing words, or with a wrong feature so that it is false."""
    text, form = caption
    if rng.random() < 0.5:
        return _drop_words(text, rng), form
    while True:
        wrong = replace_feature(form, level, rng)
        if not is_true(wrong, graph):
            return say(wrong, rng), wrong


def _drop_words(text: str, rng: np.random.Generator) -> str:
    """The text without a third of its words."""
    words = text.split()
    kept = np.sort(rng.permutation(len(words))[: len(words) - max(1, len(words) // 3)])
    return " ".join(words[i] for i in kept)


def replace_feature(form: dict, level: Level, rng: np.random.Generator) -> dict:
    """The form with one colour, shape, size or texture of a mention replaced by another."""
    number = int(rng.random() * len(form["mentions"]))
    mention = form["mentions"][number]
    key = pick(rng, [key for key in level.values if key in mention])
    other = pick(rng, [value for value in level.values[key] if value != mention[key]])
    mentions = list(form["mentions"])
    mentions[number] = mention | {key: other}
    return form | {"mentions": mentions}
