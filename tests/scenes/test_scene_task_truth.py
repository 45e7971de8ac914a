"""What the tasks on scenes say is so: an interpreter reads their English and looks at the graph.

It is written against the sentences, not with the code that makes them.
"""

import collections
import itertools
import re

import numpy as np
import pytest

from albef_jax.data.fields.answers import answers_of
from albef_jax.scenes.levels import get_level
from albef_jax.scenes.proposals import PROPOSALS

SCENES = {("demo", "train"): 250, ("demo", "heldout"): 250, ("full", "heldout"): 64}
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
COUNTS = {word: count for count, word in enumerate(COUNT_WORDS)}
SIZES = {"large": "large", "big": "large", "medium": "medium", "small": "small", "little": "small"}
TEXTURES = {"plain", "striped", "dotted", "checked"}
COLOURS = {"red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "white", "black",
           "cyan", "lime", "grey"}
SHAPES = {"circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "hexagon",
          "moon", "arrow", "drop"}
AXES = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "over": (1, 1), "upper": (1, 1),
        "top": (1, 1), "below": (1, -1), "under": (1, -1), "lower": (1, -1), "bottom": (1, -1)}
RELATION = re.compile(r" (?:(?:to the |on the )?(left|right) of|(above|over|below|under)) ")
PLACE = re.compile(r" (?:on the (left|right)|at the (top|bottom))$|^(left|right|upper|lower) ")
FILLERS = {"a", "an", "the", "another", "shape", "thing", "object"}


def beyond(a, b, direction, side, least=0.12):
    """Whether object a is at least so much of the side in this direction of object b."""
    axis, sign = AXES[direction]
    return sign * (b["centre"][axis] - a["centre"][axis]) >= least * side


def features(text):
    """What a phrase for objects asks of them."""
    text = text.replace("with stripes", "striped").replace("with dots", "dotted")
    asked = {}
    for word in text.split():
        single = "cross" if word in ("cross", "crosses") else word.removesuffix("s")
        if word in SIZES:
            asked["size"] = SIZES[word]
        elif word in TEXTURES:
            asked["texture"] = word
        elif word in COLOURS:
            asked["colour"] = word
        elif single in SHAPES:
            asked["shape"] = single
        else:
            assert single in FILLERS or word in FILLERS, (word, text)
    return asked


def simple(graph, text):
    """Numbers of the objects that a phrase without a relation fits."""
    asked = features(text).items()
    return [i for i, thing in enumerate(graph["objects"])
            if all(thing[key] == value for key, value in asked)]


def things(graph, text):
    """Numbers of the objects that a phrase fits."""
    objects, side = graph["objects"], graph["side"]
    relation = RELATION.search(text)
    if relation:
        direction = relation[1] or relation[2]
        others = things(graph, text[relation.end():])
        return [i for i in simple(graph, text[: relation.start()]) if any(
            beyond(objects[i], objects[j], direction, side) for j in others if i != j)]
    text = text.removeprefix("the ")
    place = PLACE.search(text)
    if not place:
        return simple(graph, text)
    found = simple(graph, PLACE.sub("", text))
    direction = next(filter(None, place.groups()))
    return [i for i in found if all(
        beyond(objects[i], objects[j], direction, side, 0.06) for j in found if i != j)]


def the(graph, text):
    """The one object that a phrase means."""
    (found,) = things(graph, text)
    return graph["objects"][found]


def answer(graph, question):
    """The answer to a question."""
    def match(pattern):
        return re.fullmatch(pattern, question)

    if found := match(r"what colour is (.+)|what is the colour of (.+)|"
                      r"which colour does (.+) have"):
        return the(graph, next(filter(None, found.groups())))["colour"]
    if found := match(r"(?:what|which) shape is (.+)|what is the shape of (.+)"):
        return the(graph, next(filter(None, found.groups())))["shape"]
    if found := match(r"how many (.+?) (?:are there|can you see|does the picture show)"):
        return COUNT_WORDS[len(simple(graph, found[1]))]
    if found := match(r"where is (?P<a>.+) seen from (?P<b>.+)|"
                      r"on which side of (?P<d>.+) is (?P<c>.+)"):
        a, b = the(graph, found["a"] or found["c"]), the(graph, found["b"] or found["d"])
        (direction,) = (way for way in ("left", "right", "above", "below")
                        if beyond(a, b, way, graph["side"], 0.06))
        return direction
    return "yes" if _yes(graph, match) else "no"


def _yes(graph, match):
    found = (match(r"is there (.+)") or match(r"can you see (.+)")
             or match(r"does the picture show (.+)") or match(r"is (an? .+) in the picture"))
    if found:
        return bool(things(graph, found[1]))
    values = "|".join([*SIZES, *TEXTURES, *COLOURS])
    found = match(rf"is (the .+) ({values})") or match(r"is (the .+) (an? \w+)")
    if found:
        ((key, value),) = features(found[2]).items()
        return the(graph, found[1])[key] == value
    found = match(r"is (the .+)")
    relation = RELATION.search(found[1])
    a, b = the(graph, found[1][: relation.start()]), the(graph, found[1][relation.end():])
    return beyond(a, b, relation[1] or relation[2], graph["side"])


def is_so(graph, text):
    """Whether a sentence about one picture is true."""
    text = re.sub(r"^(there (is|are)|the picture shows|you can see) ", "", text)
    if found := re.fullmatch(r"(exactly|at least|at most) (\w+) (.+)", text):
        count, limit = len(simple(graph, found[3])), COUNTS[found[2]]
        return {"exactly": count == limit, "at least": count >= limit,
                "at most": count <= limit}[found[1]]
    if text.startswith("no "):
        return not things(graph, text.removeprefix("no "))
    first = text.split()[0]
    if first in COUNTS:
        return len(simple(graph, text.removeprefix(first))) == COUNTS[first]
    return bool(things(graph, text))


def is_so_of(left, right, text):
    """Whether a statement about two pictures is true."""
    pictures = {"left": left, "right": right}
    if found := re.fullmatch(r"the two pictures together hold (\w+) (.+)|"
                             r"there are (\w+) (.+) in both pictures together", text):
        number, phrase = found[1] or found[3], found[2] or found[4]
        return COUNTS[number] == sum(len(simple(graph, phrase)) for graph in (left, right))
    if found := (re.fullmatch(r"the (?P<s>\w+) picture shows more (?P<x>.+) than .+", text) or
                 re.fullmatch(r"there are more (?P<x>.+) in the (?P<s>\w+) picture than .+", text)):
        counts = {name: len(simple(graph, found["x"])) for name, graph in pictures.items()}
        return counts.pop(found["s"]) > counts.popitem()[1]
    which = re.search(r"\b(left|right|both|one|neither) pictures?", text)
    phrase = re.sub(r"(in )?(the |exactly |only )?(left|right|both|one|neither) pictures?", "",
                    text)
    phrase = re.sub(r"^ ?(shows?|there is|there are) ", "", phrase.strip()).strip()
    truths = {name: is_so(graph, phrase) for name, graph in pictures.items()}
    return {"both": all(truths.values()), "one": sum(truths.values()) == 1,
            "neither": not any(truths.values())}.get(which[1], truths.get(which[1]))


sets = pytest.mark.parametrize("level, split", SCENES)


@sets
def test_answers_are_right(make, level, split, texts):
    source = make("scenes_vqa", level, split)
    choices = answers_of(source)
    for index, question in enumerate(texts(source)):
        graph = source.graph(source.image_id(index))
        assert source.answers(index) == [(answer(graph, question), 1.0)], (question, graph)
        assert source.answers(index)[0][0] in choices


@sets
def test_statements_are_once_true_and_once_false(make, level, split, texts):
    source = make("scenes_nlvr", level, split)
    for index, statement in enumerate(texts(source)):
        left, right = (source.graph(scene) for scene in source.scenes(index))
        assert is_so_of(left, right, statement) == source.label(index), (statement, left, right)
        assert source.group(index) == statement == source.text(index ^ 1)[0]
        assert source.label(index) != source.label(index ^ 1)


def hidden_objects(level, curtain):
    """Every kind of object that fits behind a curtain, in its middle and towards its corners."""
    x0, y0, x1, y1 = curtain
    smallest = min(least for least, _ in level.sizes.values())
    reach = (x1 - x0 - smallest) / 2 - 1
    sizes = [name for name, (_, most) in level.sizes.items() if most <= x1 - x0]
    for size, (colour, shape, texture) in itertools.product(sizes, level.kinds):
        for dx, dy in ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            place = [(x0 + x1) / 2 + dx * reach, (y0 + y1) / 2 + dy * reach]
            yield {"colour": colour, "shape": shape, "size": size, "texture": texture,
                   "centre": place}


@sets
def test_labels_of_hypotheses_follow_from_all_that_may_be_hidden(make, level, split):
    source = make("scenes_ve", level, split)
    for index in range(60):
        (text,), graph, curtain = (source.text(index), source.graph(source.image_id(index)),
                                   source.curtain(index))
        seen = graph["objects"]
        if curtain:
            x0, y0, x1, y1 = curtain
            seen = [thing for thing in seen if not (x0 <= thing["centre"][0] < x1
                                                    and y0 <= thing["centre"][1] < y1)]
        truths = {is_so(graph | {"objects": seen}, text)}
        for thing in hidden_objects(get_level(level), curtain) if curtain else ():
            truths.add(is_so(graph | {"objects": [*seen, thing]}, text))
            if len(truths) == 2:
                break
        expected = 1 if len(truths) == 2 else 2 * truths.pop()
        assert source.label(index) == expected, (text, curtain, graph)


@sets
def test_phrases_mean_one_object_and_one_proposal_finds_it(make, level, split, texts):
    source = make("scenes_grounding", level, split)
    places, firsts = collections.Counter(), collections.Counter()
    for index, phrase in enumerate(texts(source)):
        graph = source.graph(source.image_id(index))
        (target,) = things(graph, phrase)
        x0, y0, x1, y1 = graph["objects"][target]["box"]
        assert source.box(index) == (x0, y0, x1 - x0, y1 - y0)
        assert source.size(index) == (graph["side"], graph["side"])
        proposals = source.proposals(index)
        assert len(proposals) == PROPOSALS
        x, y, width, height = np.array(proposals).T
        assert min(x.min(), y.min()) >= 0 and min(width.min(), height.min()) >= 1
        assert max((x + width).max(), (y + height).max()) <= graph["side"]
        both = (np.clip(np.minimum(x + width, x1) - np.maximum(x, x0), 0, None)
                * np.clip(np.minimum(y + height, y1) - np.maximum(y, y0), 0, None))
        iou = both / (width * height + (x1 - x0) * (y1 - y0) - both)
        assert (iou >= 0.5).sum() == 1 and np.sort(iou)[-2] < 0.45
        places[int(iou.argmax())] += 1
        firsts[phrase.split()[0] == "the"] += 1
    assert len(places) == PROPOSALS and max(places.values()) < 2.2 * len(source) / PROPOSALS
    assert 0.15 < firsts[False] / len(source) < 0.4
