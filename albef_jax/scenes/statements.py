"""Statements about two pictures, each with a pair where it is true and one where it is not.

    {"which": "both", "form": {...}}                       a form as of `captions`, by picture
    {"which": "together", "mention": {...}, "count": 5}    objects in both pictures
    {"which": "more", "mention": {...}, "side": 0}         in this picture than in the other
"""

import collections

from numpy.random import Generator

from albef_jax.scenes.captions import NUMBERS, count, is_true, noun_phrase, word
from albef_jax.scenes.graph import pick, relations_of
from albef_jax.scenes.levels import Level
from albef_jax.scenes.phrases import DIRECTIONS, KEYS, a_phrase, bare_phrase, mention_of

SIDES = ("left", "right")
NAMED = KEYS[:8]  # the features that a mention names: one or two
FRAMES = {
    "left": ("the left picture shows {}", "there is {} in the left picture",
             "in the left picture there is {}"),
    "right": ("the right picture shows {}", "there is {} in the right picture",
              "in the right picture there is {}"),
    "both": ("both pictures show {}", "there is {} in both pictures"),
    "one": ("exactly one picture shows {}", "there is {} in exactly one picture",
            "only one picture shows {}"),
    "neither": ("neither picture shows {}", "there is {} in neither picture"),
}
TOGETHER_FRAMES = ("the two pictures together hold {} {}",
                   "there are {} {} in both pictures together")
MORE_FRAMES = ("the {} picture shows more {} than the {} picture",
               "there are more {1} in the {0} picture than in the {2} picture")
TRIES = 48  # scenes looked at to find one that fits
Pair = tuple[int, int]  # scenes on the left and on the right


class Statements:
    """Makes statements about the scenes of a set, whose graphs and level are given."""

    def __init__(self, graphs: list[dict], level: Level):
        self._graphs, self._level = graphs, level
        self._having = collections.defaultdict(list)  # (feature, value) -> scenes
        for number, graph in enumerate(graphs):
            for value in {(key, item[key]) for item in graph["objects"] for key in level.values}:
                self._having[value].append(number)

    def make(self, first: int, rng: Generator) -> tuple[str, dict, Pair, Pair]:
        """A statement about a scene and others: its text, its logical form, a pair of which it is
        true and one of which it is false."""
        while True:
            draw = rng.random()
            make = (self._by_picture if draw < 0.75 else
                    self._together if draw < 0.9 else self._more)
            made = make(first, rng)
            if made and len(made[0].split()) <= self._level.max_words:
                return made

    def _by_picture(self, first, rng):
        """Pairs of a scene of which a form is true and one of which it is not, or of two alike."""
        form = self._form(first, rng)
        which = pick(rng, ("left", "right", "left", "right", "both", "both", "one", "neither"))
        unlike = self._find(first, form, False, rng)
        if unlike is None:
            return None
        mixed = (first, unlike) if rng.random() < 0.5 else (unlike, first)
        if which in SIDES:
            true = (first, unlike) if which == "left" else (unlike, first)
            false = true[::-1]
        else:
            empty = which == "neither" or (which == "one" and rng.random() < 0.5)
            second = self._find(first, form, not empty, rng, but=unlike)
            if second is None:
                return None
            alike = (unlike if empty else first, second)
            true, false = (mixed, alike) if which == "one" else (alike, mixed)
        statement = {"which": which, "form": form}
        return self._say(statement, rng), statement, true, false

    def _form(self, number, rng):
        """What one picture shows: an object, two objects alike, or two that are related."""
        graph = self._graphs[number]
        objects, kind = graph["objects"], rng.random()
        items = [objects[i] for i in rng.permutation(len(objects)).tolist()]
        if kind < 0.35:
            known = relations_of(items[0], items[1], graph["side"], DIRECTIONS)
            if known:
                mentions = [mention_of(item, pick(rng, NAMED)) for item in items[:2]]
                return {"mentions": mentions, "relations": [[0, pick(rng, known), 1]]}
        if kind < 0.6:
            alike = [key for key in self._level.values if items[0][key] == items[1][key]]
            if alike:
                mention = mention_of(items[0], [pick(rng, alike)])
                mention["count"] = count(mention, objects)
                return {"mentions": [mention], "relations": []}
        return {"mentions": [mention_of(items[0], pick(rng, NAMED))], "relations": []}

    def _find(self, first, form, wanted, rng, but=-1):
        """Another scene that shares a feature with the form and of which it is true, or is not."""
        mention = pick(rng, form["mentions"])
        key = pick(rng, [key for key in mention if key != "count"])
        scenes = self._having[key, mention[key]]
        for _ in range(TRIES):
            number = pick(rng, scenes) if len(scenes) > 1 else int(rng.random() * len(self._graphs))
            if number not in (first, but) and is_true(form, self._graphs[number]) == wanted:
                return number
        return None

    def _together(self, first, rng):
        mention = self._counted(first, rng)
        second, third = self._other(mention, rng), self._other(mention, rng)
        counts = [self._count(mention, i) for i in (first, second, third)]
        if counts[1] == counts[2] or first in (second, third):
            return None
        true, false = (first, second), (first, third)
        if rng.random() < 0.5:
            true, false = true[::-1], false[::-1]
        statement = {"which": "together", "mention": mention, "count": counts[0] + counts[1]}
        if statement["count"] >= len(NUMBERS):
            return None
        return self._say(statement, rng), statement, true, false

    def _more(self, first, rng):
        mention = self._counted(first, rng)
        second = self._other(mention, rng)
        here, there = self._count(mention, first), self._count(mention, second)
        if here == there:
            return None
        side = pick(rng, (0, 1))
        true = (first, second) if (here > there) == (side == 0) else (second, first)
        statement = {"which": "more", "mention": mention, "side": side}
        return self._say(statement, rng), statement, true, true[::-1]

    def _count(self, mention, number):
        return count(mention, self._graphs[number]["objects"])

    def _counted(self, first, rng):
        if rng.random() < 0.3:
            return {}
        key = pick(rng, tuple(self._level.values))
        return {key: pick(rng, self._graphs[first]["objects"])[key]}

    def _other(self, mention, rng):
        """A scene, in half of all cases one with a counted object."""
        for value in mention.items():
            if rng.random() < 0.5:
                return pick(rng, self._having[value])
        return int(rng.random() * len(self._graphs))

    def _say(self, statement, rng):
        which = statement["which"]
        if which in FRAMES:
            form = statement["form"]
            phrases = [a_phrase(m, rng) if m["count"] == 1 else noun_phrase(m, rng)
                       for m in form["mentions"]]
            for _, relation, _ in form["relations"]:
                phrases.insert(1, word(relation, rng))
            text = pick(rng, FRAMES[which]).format(" ".join(phrases))
            is_one = form["mentions"][0]["count"] == 1
            return text if is_one else text.replace("there is", "there are")
        things = bare_phrase({"count": 2} | statement["mention"], rng)
        if which == "together":
            if statement["count"] == 1:
                things = bare_phrase({"count": 1} | statement["mention"], rng)
            return pick(rng, TOGETHER_FRAMES).format(NUMBERS[statement["count"]], things)
        side = statement["side"]
        return pick(rng, MORE_FRAMES).format(SIDES[side], things, SIDES[1 - side])
