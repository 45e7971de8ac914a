"""Captions of a scene beside captions that are wrong in one thing, in the same words otherwise."""

from collections import Counter

import numpy as np
from numpy.random import Generator

from albef_jax.scenes.captions import NUMBERS, count, is_true, say
from albef_jax.scenes.graph import pick, relations_of
from albef_jax.scenes.levels import Level
from albef_jax.scenes.phrases import DIRECTIONS, mention_of

LOOKS = ("colour", "shape")
CHANGED = 6  # words of both, such as "is a ring", "are two rings"
TRIES = 24  # forms, before a scene is left for the next


def contrast(graph: dict, level: Level, kind: str, rng: Generator) -> tuple | None:
    """A true caption and one that is false by a difference of this kind.

    Args:
        graph: the scene. kind: of `KINDS`.

    Returns:
        Two texts and their logical forms (see `scenes.captions`), the true one first; None where
        the scene does not give such a pair.
    """
    for _ in range(TRIES):
        forms = KINDS[kind](graph, level, rng)
        if forms is None or is_true(forms[1], graph):
            continue
        seed = int(rng.integers(2**32))  # the same wording for both
        texts = [say(form, np.random.default_rng(seed)) for form in forms]
        if max(len(text.split()) for text in texts) <= level.max_words and _are_near(*texts):
            return *texts, *forms
    return None


def _are_near(text, other):
    """Whether two texts differ in as many words as one thing can change: a draw may have reworded
    the rest."""
    words, others = Counter(text.split()), Counter(other.split())
    return ((words - others) + (others - words)).total() <= CHANGED


def _two(graph, rng):
    """Two objects, in any order, that differ in colour and in shape; None where there are none."""
    objects = graph["objects"]
    first, second = (objects[i] for i in rng.permutation(len(objects))[:2])
    return None if any(first[key] == second[key] for key in LOOKS) else (first, second)


def _forms(mentions, wrong, relation=None):
    """Two forms, of these mentions and of others; `relation` holds of the first to the second."""
    relations = [[0, relation, 1]] if relation else []
    return tuple({"mentions": some, "relations": relations} for some in (mentions, wrong))


def _attributes_swapped(graph, level, rng):
    """"a red star and a blue ring", "a blue star and a red ring"."""
    two = _two(graph, rng)
    if two is None:
        return None
    mentions = [mention_of(item, LOOKS) for item in two]
    colours = [mention["colour"] for mention in reversed(mentions)]
    return _forms(mentions, [mention | {"colour": colour}
                             for mention, colour in zip(mentions, colours)])


def _relation_swapped(graph, level, rng):
    """"a red star left of a blue ring", "a blue ring left of a red star"."""
    two = _two(graph, rng)
    known = two and relations_of(*two, graph["side"], DIRECTIONS)
    if not known:
        return None
    mentions = [mention_of(item, LOOKS) for item in two]
    return _forms(mentions, mentions[::-1], pick(rng, known))


def _replaced(keys):
    """A maker of forms of two objects, in one of which the value of one of these keys is wrong."""
    def make(graph, level, rng):
        two, key = _two(graph, rng), pick(rng, keys)
        if two is None:
            return None
        mentions = [mention_of(item, {*LOOKS, key}) for item in two]
        other = pick(rng, [value for value in level.values[key] if value != two[0][key]])
        wrong = [mentions[0] | {key: other}, mentions[1]]
        return _forms(mentions, wrong) if rng.random() < 0.5 else _forms(mentions[::-1],
                                                                         wrong[::-1])
    return make


def _count_changed(graph, level, rng):
    """"two red shapes", "three red shapes"."""
    objects = graph["objects"]
    item, key = pick(rng, objects), pick(rng, LOOKS)
    mention = {key: item[key]}
    right = count(mention, objects)
    wrong = right + pick(rng, (-1, 1))
    if not 0 < wrong < len(NUMBERS):
        return None
    return _forms(*([{"count": number, **mention}] for number in (right, wrong)))


KINDS = {"attributes swapped": _attributes_swapped, "relation swapped": _relation_swapped,
         "object replaced": _replaced(("shape",)),
         "attribute replaced": _replaced(("colour", "size", "texture")),
         "count changed": _count_changed}
