"""Phrases that mean one object of a scene, and things that a scene nearly shows."""

import functools

from numpy.random import Generator

from albef_jax.scenes.captions import count, matches, noun_phrase, word
from albef_jax.scenes.graph import MARGIN, pick, relations_of
from albef_jax.scenes.levels import Level, get_level

DIRECTIONS = ("left of", "right of", "above", "below")
OPPOSITE = dict(zip(DIRECTIONS, ("right of", "left of", "below", "above")))
KEYS = (
    ("colour", "shape"), ("colour", "shape"), ("colour",), ("shape",), ("size", "colour"),
    ("size", "shape"), ("texture", "shape"), ("texture", "colour"), ("size", "colour", "shape"),
    ("texture", "colour", "shape"), ("size", "texture", "colour", "shape"),
)  # the features that a phrase names
LOOKS = (
    ("colour", "shape"), ("colour", "shape"), ("size", "colour", "shape"),
    ("texture", "colour", "shape"), ("size", "texture", "colour", "shape"), ("texture", "colour"),
    ("texture", "shape"),
)  # the features that a phrase to be grounded names: few other scenes have such an object
NOUNS = ("shape", "thing", "object")  # of something whose shape is not named
PLAIN = 0.25  # share of phrases to be grounded that name their object as captions do: "a red star"
RELATED = 0.4  # share of phrases that name a second object, where that is possible
POINTED_BY_RELATION = 0.12  # of phrases to be grounded: as in RefCOCO+ most speak of looks
PLACES = {"left of": ("left", "on the left"), "right of": ("right", "on the right"),
          "above": ("upper", "at the top"), "below": ("lower", "at the bottom")}
TRIES = 8  # choices of features, before a phrase without a second object is made instead


@functools.lru_cache
def kinds_of(level: str, split: str) -> frozenset:
    """The kinds of objects that the scenes of a split can hold."""
    spec = get_level(level)
    return frozenset(spec.train_kinds if split == "train" else spec.kinds)


def mention_of(item: dict, keys) -> dict:
    """A mention of an object by some of its features, see `scenes.captions`."""
    return {"count": 1} | {key: item[key] for key in keys}


def a_phrase(mention: dict, rng: Generator) -> str:
    """"a small red thing"."""
    text = noun_phrase(mention, rng)
    return text if "shape" in mention else text.replace("shape", pick(rng, NOUNS))


def the_phrase(mention: dict, rng: Generator) -> str:
    """"the small red thing"."""
    return "the " + bare_phrase(mention, rng)


def bare_phrase(mention: dict, rng: Generator) -> str:
    """"small red thing"; of a mention with a count, "small red things"."""
    return a_phrase(mention, rng).split(" ", 1)[1]


def vary(item: dict, keys, objects: list[dict], level: Level, kinds: frozenset, rng: Generator):
    """An object that differs in one of the keys, often by what another object has.

    It is of a kind of the split: that a kind is never seen must not tell that it is not there.
    """
    while True:
        key = pick(rng, keys)
        value = pick(rng, level.values[key]) if rng.random() < 0.6 else pick(rng, objects)[key]
        other = item | {key: value}
        kind = other["colour"], other["shape"], other["texture"]
        if value != item[key] and kind in kinds:
            return other


def absent(keys, objects: list[dict], level: Level, kinds: frozenset, rng: Generator) -> dict:
    """A mention by these keys that fits no object, though nearly."""
    while True:
        mention = mention_of(vary(pick(rng, objects), keys, objects, level, kinds, rng), keys)
        if not count(mention, objects):
            return mention


def point_out(graph: dict, level: Level, rng: Generator) -> tuple[str, int]:
    """A phrase that means one object, and the number of that object."""
    objects = graph["objects"]
    while True:
        target = int(rng.random() * len(objects))
        if rng.random() < POINTED_BY_RELATION:
            phrase = refer(graph, target, rng, related=1.0)
        else:
            mention = only_mention(objects, target, rng, choices=LOOKS)
            phrase = mention and (a_phrase if rng.random() < PLAIN else the_phrase)(mention, rng)
        if phrase and len(phrase.split()) <= level.max_words:
            return phrase, target


def refer(
    graph: dict, target: int, rng: Generator, without: str = "", related: float = RELATED
) -> str | None:
    """A phrase that means one object and no other, or None if none was found.

    Args:
        target: number of the object.
        without: a feature that the phrase does not name: what is asked for.
        related: how often a second object is named: "the star left of the ring".
    """
    if rng.random() < related:
        phrase = _refer_by_relation(graph, target, rng, without)
        if phrase:
            return phrase
    mention = only_mention(graph["objects"], target, rng, without)
    return the_phrase(mention, rng) if mention else _refer_by_place(graph, target, rng, without)


def only_mention(
    objects: list[dict], target: int, rng: Generator, without: str = "", choices=KEYS
) -> dict | None:
    """A mention that fits one object and no other, or None if none was found."""
    for _ in range(TRIES):
        keys = [key for key in pick(rng, choices) if key != without]
        mention = mention_of(objects[target], keys)
        if count(mention, objects) == 1:
            return mention
    return None


def _refer_by_relation(graph, target, rng, without):
    objects, side = graph["objects"], graph["side"]
    for _ in range(TRIES):
        other = pick(rng, [i for i in range(len(objects)) if i != target])
        known = relations_of(objects[target], objects[other], side, DIRECTIONS)
        landmark = only_mention(objects, other, rng)
        if not known or not landmark:
            continue
        relation = pick(rng, known)
        key = pick(rng, ("colour", "shape", "shape", "size", ""))
        mention = mention_of(objects[target], [key] if key and key != without else [])
        # Others must not even nearly stand in the relation.
        fitting = [i for i, item in enumerate(objects) if i != other and matches(mention, item)
                   and relations_of(item, objects[other], side, (relation,), MARGIN / 2)]
        if fitting == [target]:
            return f"{the_phrase(mention, rng)} {word(relation, rng)} {the_phrase(landmark, rng)}"
    return None


def _refer_by_place(graph, target, rng, without):
    """"the left star", "the star at the top": of several, the one that is so to all others."""
    item = graph["objects"][target]
    mention = mention_of(item, [key for key in pick(rng, KEYS) if key != without])
    others = [other for other in graph["objects"] if other is not item and matches(mention, other)]
    for relation in rng.permutation(DIRECTIONS).tolist():
        if others and all(relations_of(item, other, graph["side"], (relation,), MARGIN / 2)
                          for other in others):
            before, after = PLACES[relation]
            phrase = bare_phrase(mention, rng)
            return f"the {before} {phrase}" if rng.random() < 0.5 else f"the {phrase} {after}"
    return None
