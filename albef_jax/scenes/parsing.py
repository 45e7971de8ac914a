"""What an English caption of a scene claims: the way back from `captions.say`."""

import re

from albef_jax.scenes.captions import (
    LATER_FRAMES, LIST_FRAMES, NUMBERS, PAIR_FRAMES, SUFFIXES, WORDS, plural,
)
from albef_jax.scenes.levels import BACKGROUNDS, COLOURS, LEVELS, RELATIONS, SHAPES, TEXTURES

SIZES = tuple(dict.fromkeys(size for level in LEVELS.values() for size in level.sizes))
# Of an object whose shape is not named; several such are the total.
NOUNS = {"shape": "", **{noun: name for name in SHAPES for noun in (name, plural(name))}}
THE_ONE = ("a", "an", "another")  # of one object
MENTION = r"<\d+>"  # stands for a noun phrase


def parse(text: str) -> dict | None:
    """The logical form of a caption (see `captions`), or None if it is none.

    With or without commas and colons, which models do not write. Mentions come as they stand in
    the text; "a star and a star" is understood like "a star and another star".
    """
    text, background = _split_background(re.sub("[,:]", "", text))
    mentions = []

    def number(match):
        mentions.append(_mention(match))
        return f"<{len(mentions) - 1}>"

    claims = _claims(PHRASE.sub(number, text).split(" and "), FIRST)
    if claims is None:
        return None
    form = {"mentions": mentions, "relations": claims.pop("relations", [])} | claims
    return form | ({"background": background} if background else {})


def _claims(pieces, frames):
    """What clauses claim beside their mentions; None if they are none.

    Args:
        pieces: of the text between "and"s, which stand between clauses and inside them.
        frames: that the first clause may have, see `FIRST`.
    """
    if not pieces:
        return {}
    for end in range(len(pieces), 0, -1):
        clause = " and ".join(pieces[:end])
        for frame, claims in frames:
            match = frame.fullmatch(clause)
            rest = match and _claims(pieces[end:], LATER)
            if rest is not None:
                own = claims(match)
                return own | rest | {
                    "relations": own.get("relations", []) + rest.get("relations", [])}
    return None


def _alternatives(words):
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _spoken(names):
    """Wording -> name."""
    return {said: name for name in names for said in WORDS.get(name, (name,))}


SIZE_WORDS, RELATION_WORDS = _spoken(SIZES), _spoken(RELATIONS)
TEXTURE_SUFFIXES = {suffix: name for name, suffix in SUFFIXES.items()}
PHRASE = re.compile(
    rf"\b(?P<count>{_alternatives([*THE_ONE, *NUMBERS[2:]])})"
    rf"(?: (?P<size>{_alternatives(SIZE_WORDS)}))?(?: (?P<texture>{_alternatives(TEXTURES)}))?"
    rf"(?: (?P<colour>{_alternatives(COLOURS)}))? (?P<shape>{_alternatives(NOUNS)})\b"
    rf"(?: (?P<suffix>{_alternatives(TEXTURE_SUFFIXES)}))?"
    r"(?: at the (?P<place>(?:top|bottom) (?:left|right)))?")


def _mention(match):
    """A mention of a noun phrase."""
    found = {key: value for key, value in match.groupdict().items() if value}
    count = found.pop("count")
    mention = {"count": 1 if count in THE_ONE else NUMBERS.index(count)}
    if "suffix" in found:
        found["texture"] = TEXTURE_SUFFIXES[found.pop("suffix")]
    if "size" in found:
        found["size"] = SIZE_WORDS[found["size"]]
    shape = NOUNS[found.pop("shape")]
    return mention | found | ({"shape": shape} if shape else {})


def _split_background(text):
    match = re.fullmatch(rf"(.*) on a ({_alternatives(BACKGROUNDS)}) background", text)
    return match.groups() if match else (text, "")


def _total(match):
    return {"total": NUMBERS.index(match["total"])}


def _relations(match):
    """Of the first to the second, and where a third is named to that."""
    found = match.groupdict()
    number = {name: int(found[name][1:-1]) for name in "abc" if name in found}
    return {"relations": [[number["a"], RELATION_WORDS[found[relation]], number[target]]
                          for relation, target in ("rb", "sc") if relation in found]}


LIST = f"{MENTION}(?: {MENTION})*(?: and {MENTION})?"
PARTS = dict(a=MENTION, b=MENTION, c=MENTION, r=_alternatives(RELATION_WORDS),
             s=_alternatives(RELATION_WORDS), listed=LIST, total=_alternatives(NUMBERS))


def _frame(frame):
    """A frame of `captions` as a regular expression."""
    parts = {name: f"(?P<{name}>{pattern})" for name, pattern in PARTS.items()}
    return re.compile(frame.format(be="(?:is|are)", **parts))


# Pairs of a clause as a regular expression, and what it claims by its match.
LATER = [*((_frame(frame), _relations) for frame in LATER_FRAMES),
         (_frame("{a} {be} {r} {b} and {s} {c}"), _relations),
         (_frame("there {be} {listed}"), lambda match: {})]
FIRST = [*LATER, *((_frame(frame), _relations) for frame in PAIR_FRAMES),
         *((_frame(frame.replace("{}", "{listed}")), lambda match: {}) for frame in LIST_FRAMES),
         (_frame("{total} (?:shapes|objects|things) {listed}"), _total)]
