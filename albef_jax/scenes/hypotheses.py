"""Hypotheses about a picture, part of which is behind a curtain: true, false, or it depends.

    {"form": {...}, "negated": False}               a form as of `captions`
    {"mention": {...}, "least": 2, "most": 2}       how many objects there are

One object may be behind the curtain, of any kind, or none.
"""

import itertools

from numpy.random import Generator

from albef_jax.scenes.captions import FEATURES, count, is_true, word
from albef_jax.scenes.curtains import Box, can_hide, place_curtain, split
from albef_jax.scenes.graph import pick, relations_of
from albef_jax.scenes.levels import Level
from albef_jax.scenes.phrases import (
    DIRECTIONS, KEYS, OPPOSITE, a_phrase, absent, bare_phrase, mention_of,
)

LABELS = ("contradiction", "neutral", "entailment")
FALSE, UNKNOWN, TRUE = range(3)
MOST = 99  # no limit to a count
CURTAINS = 0.8  # share of pictures with a curtain where it decides nothing
FRAMES = ("there is {}", "the picture shows {}", "you can see {}")
NEGATED = ("there is no {}", "the picture shows no {}", "you can see no {}")
COUNT_FRAMES = {(2, 2): "there are exactly two {}", (2, MOST): "there are at least two {}",
                (0, 1): "there is at most one {}"}
TRIES = 60
UNLIKE = {"size": "", "texture": "", "colour": "", "shape": ""}  # an object like no mention


def suppose(
    graph: dict, level: Level, kinds: frozenset, label: int, rng: Generator
) -> tuple[str, dict, Box | None, int]:
    """One hypothesis about a scene.

    The frame and the features that are named do not depend on the label, so that they cannot tell
    it. What they are filled with is drawn until the label comes out.

    Args:
        label: the one that is wanted, a place in `LABELS`; another if there is no room to hide.

    Returns:
        text, logical form, the box of the curtain or None, and the label.
    """
    for attempt in itertools.count():
        if attempt > 8:
            label = int(3 * rng.random())
        found = _suppose(graph, level, kinds, label, rng)
        if found:
            return *found, label


def _suppose(graph, level, kinds, label, rng):
    features, template = [key for key in FEATURES if can_hide(level, key)], rng.random()
    propose = (_existence if template < 0.62 else _pair if template < 0.88 else
               _counter(graph, features, rng))
    negated = propose in (_existence, _pair) and rng.random() < 0.5
    keys = [[key for key in pick(rng, KEYS) if key in features] for _ in range(2)]
    wanted = TRUE - label if negated else label
    for _ in range(TRIES):
        curtain = None
        if label == UNKNOWN or rng.random() < CURTAINS:
            curtain = place_curtain(graph, level, rng)
        seen, hidden = split(graph, curtain)
        hypothesis = propose(seen, hidden, wanted, keys, level, kinds, rng)
        if hypothesis and negated:
            hypothesis["negated"] = True
        if hypothesis and judge(hypothesis, seen, curtain) == label:
            text = say(hypothesis, rng)
            if len(text.split()) <= level.max_words:
                return text, hypothesis, curtain
    return None


def judge(hypothesis: dict, seen: dict, curtain: Box | None) -> int:
    """The label of a hypothesis: its truth whatever is behind the curtain, if there is one."""
    truths = {_holds(hypothesis, seen)}
    if curtain is not None:
        for item in _hideable(hypothesis, seen["side"], curtain):
            truths.add(_holds(hypothesis, seen | {"objects": [*seen["objects"], item]}))
    return UNKNOWN if len(truths) > 1 else TRUE if truths.pop() else FALSE


def _holds(hypothesis, graph):
    if "form" in hypothesis:
        return is_true(hypothesis["form"], graph) != hypothesis["negated"]
    number = count(hypothesis["mention"], graph["objects"])
    return hypothesis["least"] <= number <= hypothesis["most"]


def _hideable(hypothesis, side, curtain):
    """Objects that may be behind the curtain, as far as the hypothesis tells them apart."""
    mentions = hypothesis["form"]["mentions"] if "form" in hypothesis else [hypothesis["mention"]]
    x, y = (curtain[0] + curtain[2]) / 2, (curtain[1] + curtain[3]) / 2
    places = [(x, y)]
    if hypothesis.get("form", {}).get("relations"):
        reach = (curtain[2] - curtain[0]) / 4
        places = itertools.product((x - reach, x, x + reach), (y - reach, y, y + reach))
    for place in places:
        for mention in ({}, *mentions):
            yield UNLIKE | mention | {"centre": place}


def _existence(seen, hidden, wanted, keys, level, kinds, rng):
    """What is seen; what is not; what is behind the curtain, or might be."""
    if wanted == TRUE:
        mention = mention_of(pick(rng, seen["objects"]), keys[0]) if seen["objects"] else None
    elif wanted == UNKNOWN and hidden and rng.random() < 0.5:
        mention = mention_of(hidden[0], keys[0])
    else:
        mention = absent(keys[0], seen["objects"] + hidden, level, kinds, rng)
    return mention and {"form": {"mentions": [mention], "relations": []}, "negated": False}


def _pair(seen, hidden, wanted, keys, level, kinds, rng):
    """As it is seen; the other way round; with an object that is not seen."""
    objects = seen["objects"] + (hidden if wanted == UNKNOWN else [])
    if len(objects) < 2:
        return None
    order = rng.permutation(len(objects)).tolist()
    a, b = (objects[i] for i in order[:2])
    known = relations_of(a, b, seen["side"], DIRECTIONS)
    if not known:
        return None
    relation = pick(rng, known)
    mentions = [mention_of(a, keys[0]), mention_of(b, keys[1])]
    if wanted != TRUE and rng.random() < 0.5:
        changed = pick(rng, (0, 1))
        mentions[changed] = absent(keys[changed], objects, level, kinds, rng)
    elif wanted == FALSE:
        relation = OPPOSITE[relation]
    return {"form": {"mentions": mentions, "relations": [[0, relation, 1]]}, "negated": False}


def _counter(graph, features, rng):
    """Counts objects by a feature of which the scene has two: any label can come out then."""
    objects = graph["objects"]
    alike = [key for key in features
             if any(count({key: item[key]}, objects) == 2 for item in objects)]
    if not alike:
        return _existence
    key, limits = pick(rng, alike), pick(rng, ((2, 2), (2, 2), (2, MOST), (0, 1)))

    def propose(seen, hidden, wanted, keys, level, kinds, rng):
        here = [item[key] for item in seen["objects"] + hidden]
        value = pick(rng, here if here and rng.random() < 0.8 else level.values[key])
        return {"mention": {key: value}, "least": limits[0], "most": limits[1]}

    return propose


def say(hypothesis: dict, rng: Generator) -> str:
    """The hypothesis in English."""
    if "mention" in hypothesis:
        limits = hypothesis["least"], hypothesis["most"]
        things = {"count": 1 if limits == (0, 1) else 2} | hypothesis["mention"]
        return COUNT_FRAMES[limits].format(bare_phrase(things, rng))
    form, negated = hypothesis["form"], hypothesis["negated"]
    first = form["mentions"][0]
    text = bare_phrase(first, rng) if negated else a_phrase(first, rng)
    for _, relation, target in form["relations"]:
        text += f" {word(relation, rng)} {a_phrase(form['mentions'][target], rng)}"
    return pick(rng, NEGATED if negated else FRAMES).format(text)
