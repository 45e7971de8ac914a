"""Questions about a scene with one answer, balanced so that the text does not give it away."""

import functools

from numpy.random import Generator

from albef_jax.scenes.captions import NUMBERS, count, is_true, word
from albef_jax.scenes.graph import MARGIN, pick, relations_of
from albef_jax.scenes.levels import Level
from albef_jax.scenes.phrases import (
    DIRECTIONS, KEYS, OPPOSITE, a_phrase, absent, bare_phrase, mention_of, only_mention, refer,
    the_phrase, vary,
)

COUNTS = ("zero", *NUMBERS[1:])
SIDES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
EXIST_FRAMES = ("is there {}", "is there {}", "can you see {}", "does the picture show {}",
                "is {} in the picture")
COLOUR_FRAMES = ("what colour is {}", "what colour is {}", "what is the colour of {}",
                 "which colour does {} have")
SHAPE_FRAMES = ("what shape is {}", "what shape is {}", "what is the shape of {}",
                "which shape is {}")
COUNT_FRAMES = ("how many {} are there", "how many {} are there", "how many {} can you see",
                "how many {} does the picture show")
SIDE_FRAMES = ("where is {a} seen from {b}", "on which side of {b} is {a}")
COUNTED = ("shape", "shape", "colour", "texture", "size")


def ask(graph: dict, level: Level, kinds: frozenset, rng: Generator) -> tuple[str, str, str]:
    """A question about a scene, its answer, and its type, a key of `_ASK`.

    `kinds` are those of the objects that questions speak of, see `phrases.kinds_of`.
    """
    while True:
        kind = pick(rng, _TYPES)
        found = _ASK[kind](graph, level, kinds, rng)
        if found and len(found[0].split()) <= level.max_words:
            return *found, kind


def answer_list(level: Level) -> list[str]:
    """All answers of a level, each once."""
    counts = COUNTS[: level.objects[1] + 1]
    return ["yes", "no", *level.colours, *level.shapes, *counts, *SIDES.values()]


def _ask_yes_no(graph, level, kinds, rng):
    ask_about = pick(rng, (_ask_existence, _ask_existence, _ask_pair, _ask_side, _ask_feature))
    wanted = rng.random() < 0.5
    question = ask_about(graph, level, kinds, rng, wanted)
    return question and (question, "yes" if wanted else "no")


def _ask_existence(graph, level, kinds, rng, wanted):
    """"is there a red star"."""
    objects, keys = graph["objects"], pick(rng, KEYS)
    mention = (mention_of(pick(rng, objects), keys) if wanted
               else absent(keys, objects, level, kinds, rng))
    return pick(rng, EXIST_FRAMES).format(a_phrase(mention, rng))


def _ask_pair(graph, level, kinds, rng, wanted):
    """"is there a red star left of a ring"."""
    objects = graph["objects"]
    while True:
        a, b, relation = _related_pair(graph, rng)
        keys = pick(rng, KEYS), pick(rng, KEYS)
        mentions = [mention_of(objects[a], keys[0]), mention_of(objects[b], keys[1])]
        if not wanted and rng.random() < 0.5:
            relation = OPPOSITE[relation]
        elif not wanted:
            changed = pick(rng, (0, 1))
            mentions[changed] = absent(keys[changed], objects, level, kinds, rng)
        if is_true({"mentions": mentions, "relations": [[0, relation, 1]]}, graph) == wanted:
            break
    first, second = (a_phrase(mention, rng) for mention in mentions)
    return f"is there {first} {word(relation, rng)} {second}"


def _ask_side(graph, level, kinds, rng, wanted):
    """"is the red star left of the ring"."""
    a, b, relation = _related_pair(graph, rng)
    first, second = (only_mention(graph["objects"], i, rng) for i in (a, b))
    if not first or not second:
        return None
    relation = word(relation if wanted else OPPOSITE[relation], rng)
    return f"is {the_phrase(first, rng)} {relation} {the_phrase(second, rng)}"


def _ask_feature(graph, level, kinds, rng, wanted):
    """"is the small star red"."""
    objects, key = graph["objects"], pick(rng, tuple(level.values))
    target = int(rng.random() * len(objects))
    phrase = refer(graph, target, rng, without=key)
    item = objects[target] if wanted else vary(objects[target], [key], objects, level, kinds, rng)
    said = a_phrase(mention_of(item, [key]), rng) if key == "shape" else word(item[key], rng)
    return phrase and f"is {phrase} {said}"


def _related_pair(graph, rng):
    """Two objects (numbers) and a direction in which the first clearly stands to the second."""
    objects = graph["objects"]
    while True:
        a, b = rng.permutation(len(objects))[:2].tolist()
        known = relations_of(objects[a], objects[b], graph["side"], DIRECTIONS)
        if known:
            return a, b, pick(rng, known)


def _ask_what(graph, level, kinds, rng, key, frames):
    """"what colour is the ring"."""
    target = int(rng.random() * len(graph["objects"]))
    phrase = refer(graph, target, rng, without=key)
    return phrase and (pick(rng, frames).format(phrase), graph["objects"][target][key])


def _ask_count(graph, level, kinds, rng):
    """All counts of a feature's values in the scene are asked for alike."""
    key = pick(rng, COUNTED)
    having = {}
    for value in level.values[key]:
        having.setdefault(count({key: value}, graph["objects"]), []).append(value)
    number = pick(rng, sorted(having))
    phrase = bare_phrase({"count": 2, key: pick(rng, having[number])}, rng)
    return pick(rng, COUNT_FRAMES).format(phrase), COUNTS[number]


def _ask_relation(graph, level, kinds, rng):
    """"where is the red star seen from the ring", if there is just one direction to name."""
    objects = graph["objects"]
    a, b, relation = _related_pair(graph, rng)
    nearly = relations_of(objects[a], objects[b], graph["side"], DIRECTIONS, MARGIN / 2)
    first, second = (only_mention(objects, i, rng) for i in (a, b))
    if not first or not second or len(nearly) > 1:
        return None
    frame = pick(rng, SIDE_FRAMES)
    return frame.format(a=the_phrase(first, rng), b=the_phrase(second, rng)), SIDES[relation]


_ASK = {
    "yes/no": _ask_yes_no, "count": _ask_count, "relation": _ask_relation,
    "colour": functools.partial(_ask_what, key="colour", frames=COLOUR_FRAMES),
    "shape": functools.partial(_ask_what, key="shape", frames=SHAPE_FRAMES),
}
_TYPES = 21 * ("yes/no",) + 15 * ("colour",) + 10 * ("shape",) + 3 * ("count",) + 7 * ("relation",)
