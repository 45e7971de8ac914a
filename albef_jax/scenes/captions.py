"""English captions of a scene and what they claim.

A caption has a logical form, plain JSON data:

    {"mentions": [{"count": 1, "colour": "red", "shape": "star"},
                  {"count": 2, "size": "small", "colour": "blue", "shape": "ring"}],
     "relations": [[0, "left of", 1]],
     "total": 3, "background": "shaded"}

A mention with count 1 says that there is such an object, one with count n > 1 that there are
exactly n; mentions speak of different objects. A relation holds between all objects of its two
mentions. `total` (the number of objects) and `background` are optional.
"""

from __future__ import annotations

import itertools

import numpy as np

from albef_jax.scenes.graph import pick, relations_of
from albef_jax.scenes.levels import Level

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
WORDS = {
    "large": ("large", "large", "big"),
    "small": ("small", "small", "little"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
    "near": ("near", "close to"),
}
SUFFIXES = {"striped": "with stripes", "dotted": "with dots"}
PLURALS = {"cross": "crosses"}
FEATURES = ("size", "texture", "colour", "shape")  # in the order of English adjectives
DROPPED = 0.03  # share of colours and of shapes that captions leave out
LIST_FRAMES = ("{}", "{}", "there {be} {}", "there {be} {}", "a picture of {}", "an image of {}",
               "you can see {}", "this picture shows {}", "here {be} {}")
PAIR_FRAMES = ("{a} {be} {r} {b}", "{a} {be} {r} {b}", "there {be} {a} {r} {b}",
               "{r} {b} there {be} {a}", "{r} {b} {be} {a}", "{a} {r} {b}",
               "a picture of {a} {r} {b}", "you can see {a} {r} {b}")
LATER_FRAMES = PAIR_FRAMES[:5]  # whole sentences, which can follow another clause


def is_true(form: dict, graph: dict) -> bool:
    """Whether everything that a caption of this form claims holds in the scene."""
    objects = graph["objects"]
    if form.get("total", len(objects)) != len(objects):
        return False
    if form.get("background", graph["background"]["kind"]) != graph["background"]["kind"]:
        return False
    candidates = []
    for mention in form["mentions"]:
        candidates.append(_candidates(mention, objects))
        if not candidates[-1]:
            return False
    return any(
        _is_disjoint(choice) and _all_related(form["relations"], choice, graph)
        for choice in itertools.product(*candidates)
    )


def matches(mention: dict, item: dict) -> bool:
    """Whether an object has all the features of a mention."""
    return all(item[key] == value for key, value in mention.items() if key != "count")


def _candidates(mention: dict, objects: list[dict]) -> list[tuple[int, ...]]:
    """The sets of objects (their numbers) that a mention can speak of."""
    found = [i for i, item in enumerate(objects) if matches(mention, item)]
    if mention["count"] == 1:
        return [(i,) for i in found]
    return [tuple(found)] if len(found) == mention["count"] else []


def _is_disjoint(choice) -> bool:
    numbers = [i for group in choice for i in group]
    return len(set(numbers)) == len(numbers)


def _all_related(relations, choice, graph: dict) -> bool:
    objects, side = graph["objects"], graph["side"]
    return all(
        relations_of(objects[i], objects[j], side, (relation,))
        for subject, relation, target in relations
        for i in choice[subject]
        for j in choice[target]
    )


def make_captions(
    graph: dict, level: Level, rng: np.random.Generator, number: int
) -> list[tuple[str, dict]]:
    """`number` different true captions of a scene, as (text, form)."""
    captions = {}
    while len(captions) < number:
        form = choose_form(graph, level, rng)
        text = say(form, rng)
        if len(text.split()) <= level.max_words:
            captions.setdefault(text, form)
    return list(captions.items())


def choose_form(graph: dict, level: Level, rng: np.random.Generator) -> dict:
    """A true and informative claim about a scene."""
    objects = graph["objects"]
    order = rng.permutation(len(objects)).tolist()
    most = min(len(order), 3 if len(objects) < 5 else 4)
    chosen = order[: pick(rng, (2, most))]
    mentions = [_mention(objects[i], level, rng) for i in chosen]
    relations = []
    if rng.random() < level.related:
        relations = _relations(graph, level, chosen, rng)
    form = {"mentions": mentions, "relations": relations}
    if not relations:
        form["mentions"] = _count_alike(mentions, [objects[i] for i in chosen], objects, rng)
        if len(chosen) == len(objects) and rng.random() < 0.25:
            form["total"] = len(objects)
    if level.setting and rng.random() < 0.2:
        form["background"] = graph["background"]["kind"]
    return form


def _mention(item: dict, level: Level, rng: np.random.Generator) -> dict:
    size, texture, dropped, which, place = rng.random(5).tolist()
    left_out = {"colour" if which < 0.5 else "shape"} if dropped < 2 * DROPPED else set()
    left_out |= {"size"} if size > level.mentioned else set()
    left_out |= {"texture"} if texture > level.mentioned else set()
    mention = {"count": 1} | {key: item[key] for key in FEATURES if key not in left_out}
    if level.setting and item["place"] and place < 0.15:
        mention["place"] = item["place"]
    return mention


def _relations(graph: dict, level: Level, chosen: list[int], rng: np.random.Generator) -> list:
    """The first mention to the second, and perhaps to the third; what is clearly so."""
    objects, relations = graph["objects"], []
    targets = 2 if len(chosen) > 2 and rng.random() < 0.4 else 1
    for target in range(1, 1 + targets):
        known = relations_of(objects[chosen[0]], objects[chosen[target]], graph["side"],
                             level.relations)
        if known:
            relations.append([0, pick(rng, known), target])
    if len(chosen) > 3:
        known = relations_of(objects[chosen[2]], objects[chosen[3]], graph["side"],
                             level.relations)
        if known and targets == 1:
            relations.append([2, pick(rng, known), 3])
    return relations


def _count_alike(
    mentions: list[dict], chosen: list[dict], objects: list[dict], rng: np.random.Generator
) -> list[dict]:
    """Sometimes one mention with a count for objects of one shape, if these are all such objects.

    It names all features that they share. Objects of one colour too are mostly counted.
    """
    for shape in dict.fromkeys(item["shape"] for item in chosen):
        alike = [i for i, item in enumerate(chosen) if item["shape"] == shape]
        if len(alike) < 2:
            continue
        one_colour = len({chosen[i]["colour"] for i in alike}) == 1
        merged = {"count": len(alike)} | {
            key: chosen[alike[0]][key] for key in FEATURES
            if len({chosen[i][key] for i in alike}) == 1
        }
        is_all = sum(matches(merged, item) for item in objects) == len(alike)
        if is_all and rng.random() < (0.6 if one_colour else 0.15):
            return [merged, *(m for i, m in enumerate(mentions) if i not in alike)]
    return mentions


def say(form: dict, rng: np.random.Generator) -> str:
    """One of the many English sentences of a form: lower case, with commas."""
    phrases = _noun_phrases(form["mentions"], rng)
    verbs = ["is" if mention["count"] == 1 else "are" for mention in form["mentions"]]
    clauses, said = [], set()
    for subject, group in itertools.groupby(form["relations"], key=lambda relation: relation[0]):
        group = list(group)
        frame = pick(rng, LATER_FRAMES if clauses else PAIR_FRAMES)
        clauses.append(_relation_clause(frame, subject, group, phrases, verbs, rng))
        said |= {subject, *(target for _, _, target in group)}
    rest = [i for i in range(len(phrases)) if i not in said]
    if rest:
        clauses.append(_list_clause([phrases[i] for i in rest], verbs[rest[0]], form, clauses, rng))
    text = ", and ".join(clauses)
    if "background" in form:
        text += f" on a {form['background']} background"
    return text


def _relation_clause(frame, subject, group, phrases, verbs, rng) -> str:
    named = [f"{word(relation, rng)} {phrases[target]}" for _, relation, target in group]
    if len(group) > 1:
        return f"{phrases[subject]} {verbs[subject]} {' and '.join(named)}"
    _, relation, target = group[0]
    return frame.format(a=phrases[subject], b=phrases[target], r=word(relation, rng),
                        be=verbs[subject])


def _list_clause(phrases, verb, form, clauses, rng) -> str:
    listed = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
    if clauses:
        return f"there {verb} {listed}"
    if "total" in form:
        return f"{NUMBERS[form['total']]} {pick(rng, ('shapes', 'objects', 'things'))}: {listed}"
    return pick(rng, LIST_FRAMES).format(listed, be=verb)


def _noun_phrases(mentions: list[dict], rng: np.random.Generator) -> list[str]:
    return [
        noun_phrase(mention, rng, another=mention in mentions[:i])
        for i, mention in enumerate(mentions)
    ]


def noun_phrase(mention: dict, rng: np.random.Generator, another: bool = False) -> str:
    """For example "a large red star with stripes" or "two small rings"."""
    texture = mention.get("texture")
    suffix = SUFFIXES.get(texture) if rng.random() < 0.15 else None
    words = [
        word(mention[key], rng)
        for key in ("size", "texture", "colour")
        if key in mention and not (key == "texture" and suffix)
    ]
    noun = mention.get("shape", "shape")
    if mention["count"] > 1:
        words = [NUMBERS[mention["count"]], *words, PLURALS.get(noun, noun + "s")]
    else:
        words = [*words, noun]
        words.insert(0, "another" if another else "an" if words[0][0] in "aeiou" else "a")
    if suffix:
        words.append(suffix)
    if "place" in mention:
        words.append(f"at the {mention['place']}")
    return " ".join(words)


def word(value: str, rng: np.random.Generator) -> str:
    """A size or a relation in one of its wordings; other values as they are."""
    return pick(rng, WORDS[value]) if value in WORDS else value
