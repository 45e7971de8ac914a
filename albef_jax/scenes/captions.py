"""English captions of a scene, what they claim, and captions that are wrong on purpose.

A caption has a logical form, plain JSON data:

    {"mentions": [{"count": 1, "colour": "red", "shape": "star"},
                  {"count": 2, "size": "small", "colour": "blue", "shape": "ring"}],
     "relations": [[0, "left of", 1]],
     "total": 3, "background": "shaded"}

A mention with count 1 says that there is such an object, one with count n > 1 that there are
exactly n; mentions speak of different objects. A relation holds between all objects of its two
mentions. `total` (the number of objects) and `background` are optional.
"""

import itertools

import numpy as np
from numpy.random import Generator

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
    objects, kind = graph["objects"], graph["background"]["kind"]
    if form.get("total", len(objects)) != len(objects) or form.get("background", kind) != kind:
        return False
    candidates = []
    for mention in form["mentions"]:
        candidates.append(_candidates(mention, objects))
        if not candidates[-1]:
            return False
    return any(_is_disjoint(choice) and _all_related(form["relations"], choice, graph)
               for choice in itertools.product(*candidates))


def matches(mention: dict, item: dict) -> bool:
    """Whether an object has all the features of a mention."""
    return all(item[key] == value for key, value in mention.items() if key != "count")


def count(mention: dict, objects: list[dict]) -> int:
    """How many of the objects have all the features of a mention."""
    return sum(matches(mention, item) for item in objects)


def _candidates(mention, objects):
    """The sets of objects (tuples of their numbers) that a mention can speak of."""
    found = [i for i, item in enumerate(objects) if matches(mention, item)]
    if mention["count"] == 1:
        return [(i,) for i in found]
    return [tuple(found)] if len(found) == mention["count"] else []


def _is_disjoint(choice):
    numbers = [*itertools.chain(*choice)]
    return len(set(numbers)) == len(numbers)


def _all_related(relations, choice, graph):
    objects, side = graph["objects"], graph["side"]
    return all(relations_of(objects[i], objects[j], side, (relation,))
               for subject, relation, target in relations
               for i in choice[subject] for j in choice[target])


def make_captions(graph: dict, level: Level, rng: Generator, number: int) -> list[tuple[str, dict]]:
    """`number` different true captions of a scene, as (text, form)."""
    captions = {}
    while len(captions) < number:
        form = _choose_form(graph, level, rng)
        text = say(form, rng)
        if len(text.split()) <= level.max_words:
            captions.setdefault(text, form)
    return list(captions.items())


def _choose_form(graph, level, rng):
    """A true and informative claim about a scene."""
    objects = graph["objects"]
    order = rng.permutation(len(objects)).tolist()
    most = min(len(order), 3 if len(objects) < 5 else 4)
    chosen = [objects[i] for i in order[: pick(rng, (2, most))]]
    mentions = [_mention(item, level, rng) for item in chosen]
    relations = _relations(graph, level, chosen, rng) if rng.random() < level.related else []
    form = {"mentions": mentions, "relations": relations}
    if not relations:
        form["mentions"] = _count_alike(mentions, chosen, objects, rng)
        if len(chosen) == len(objects) and rng.random() < 0.25:
            form["total"] = len(objects)
    if level.setting and rng.random() < 0.2:
        form["background"] = graph["background"]["kind"]
    return form


def _mention(item, level, rng):
    size, texture, dropped, which, place = rng.random(5).tolist()
    left_out = {"colour" if which < 0.5 else "shape"} if dropped < 2 * DROPPED else set()
    left_out |= {"size"} if size > level.mentioned else set()
    left_out |= {"texture"} if texture > level.mentioned else set()
    mention = {"count": 1} | {key: item[key] for key in FEATURES if key not in left_out}
    if level.setting and item["place"] and place < 0.15:
        mention["place"] = item["place"]
    return mention


def _relations(graph, level, chosen, rng):
    """The first mention to the second, and perhaps to the third or of two more; what is clear."""
    pairs = [(0, 1), (0, 2)] if len(chosen) > 2 and rng.random() < 0.4 else [(0, 1)]
    if len(chosen) > 3 and len(pairs) == 1:
        pairs.append((2, 3))
    relations = []
    for subject, target in pairs:
        known = relations_of(chosen[subject], chosen[target], graph["side"], level.relations)
        if known:
            relations.append([subject, pick(rng, known), target])
    return relations


def _count_alike(mentions, chosen, objects, rng):
    """Sometimes one mention with a count for objects of one shape, if these are all such objects.

    It names all features that they share. Objects of one colour too are mostly counted.
    """
    for shape in dict.fromkeys(item["shape"] for item in chosen):
        alike = [i for i, item in enumerate(chosen) if item["shape"] == shape]
        if len(alike) < 2:
            continue
        merged = {"count": len(alike)} | {key: chosen[alike[0]][key] for key in FEATURES
                                          if len({chosen[i][key] for i in alike}) == 1}
        share = 0.6 if "colour" in merged else 0.15
        if count(merged, objects) == len(alike) and rng.random() < share:
            return [merged, *(m for i, m in enumerate(mentions) if i not in alike)]
    return mentions


def say(form: dict, rng: Generator) -> str:
    """One of the many English sentences of a form: lower case, with commas."""
    mentions = form["mentions"]
    phrases = [noun_phrase(mention, rng, another=mention in mentions[:i])
               for i, mention in enumerate(mentions)]
    verbs = ["is" if mention["count"] == 1 else "are" for mention in mentions]
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
    return text + f" on a {form['background']} background" if "background" in form else text


def _relation_clause(frame, subject, group, phrases, verbs, rng):
    named = [f"{word(relation, rng)} {phrases[target]}" for _, relation, target in group]
    if len(group) > 1:
        return f"{phrases[subject]} {verbs[subject]} {' and '.join(named)}"
    _, relation, target = group[0]
    return frame.format(a=phrases[subject], b=phrases[target], r=word(relation, rng),
                        be=verbs[subject])


def _list_clause(phrases, verb, form, clauses, rng):
    listed = ", ".join(phrases[:-1]) + (" and " if len(phrases) > 1 else "") + phrases[-1]
    if clauses:
        return f"there {verb} {listed}"
    if "total" in form:
        return f"{NUMBERS[form['total']]} {pick(rng, ('shapes', 'objects', 'things'))}: {listed}"
    return pick(rng, LIST_FRAMES).format(listed, be=verb)


def noun_phrase(mention: dict, rng: Generator, another: bool = False) -> str:
    """For example "a large red star with stripes" or "two small rings"."""
    suffix = SUFFIXES.get(mention.get("texture")) if rng.random() < 0.15 else None
    words = [word(mention[key], rng) for key in ("size", "texture", "colour")
             if key in mention and not (key == "texture" and suffix)]
    noun = mention.get("shape", "shape")
    if mention["count"] > 1:
        words = [NUMBERS[mention["count"]], *words, plural(noun)]
    else:
        words = [*words, noun]
        words.insert(0, "another" if another else "an" if words[0][0] in "aeiou" else "a")
    if suffix:
        words.append(suffix)
    if "place" in mention:
        words.append(f"at the {mention['place']}")
    return " ".join(words)


def plural(noun: str) -> str:
    """The plural of the name of a shape."""
    return PLURALS.get(noun, noun + "s")


def word(value: str, rng: Generator) -> str:
    """A size or a relation in one of its wordings; other values as they are."""
    return pick(rng, WORDS[value]) if value in WORDS else value


def damage(
    caption: tuple[str, dict], graph: dict, level: Level, rng: Generator
) -> tuple[str, dict]:
    """A caption (text, form) without a third of its words, or false by a wrong feature."""
    text, form = caption
    if rng.random() < 0.5:
        words = text.split()
        kept = np.sort(rng.permutation(len(words))[: len(words) - max(1, len(words) // 3)])
        return " ".join(words[i] for i in kept), form
    while True:
        wrong = _replace_feature(form, level, rng)
        if not is_true(wrong, graph):
            return say(wrong, rng), wrong


def _replace_feature(form, level, rng):
    """The form with one colour, shape, size or texture of a mention replaced by another."""
    mentions = list(form["mentions"])
    number = int(rng.random() * len(mentions))
    mention = mentions[number]
    key = pick(rng, [key for key in level.values if key in mention])
    other = pick(rng, [value for value in level.values[key] if value != mention[key]])
    mentions[number] = mention | {key: other}
    return form | {"mentions": mentions}
