"""Cleaning of image-text pairs, as LAIT was (ImageBERT, arXiv:2001.07966, section 3): rules.

A rule is a pure function of all pairs that are left, of which it keeps some; each has a threshold,
without which it is left out. They stand in the order in which they are applied: cheap ones first,
and the best caption of an image is chosen among those that are good.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from albef_jax.data.text import SPECIAL_TOKENS
from albef_jax.errors import MISSING, UserError

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
LINK = re.compile(r"https?://|www\.|<[a-zA-Z/!]|&[a-z]{2,6};")
SCORES = ("itm", "itc")  # columns of `albef score`, the one that tells most first
REPEATED = re.compile(r"(.)\1{4}")  # a character five times in a row


class Pairs(NamedTuple):
    """n pairs of an image and a text.

    images: names. texts: as written. words: of each text, in small letters. sides: int32 [n, 2],
    width and height of the image in pixels, 0 where it cannot be read. scores: name -> float [n],
    nan where there is none, as of `albef score`.
    """

    images: list[str]
    texts: list[str]
    words: list[list[str]]
    sides: np.ndarray
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, images, texts, sides, scores):
        """`words` are found in the texts."""
        words = [WORD.findall(text.lower()) for text in texts]
        return cls(images, texts, words, np.reshape(sides, (len(texts), 2)), scores)

    def rows(self, chosen: np.ndarray) -> "Pairs":
        """Some of the pairs, by number."""
        def taken(values):
            return [values[row] for row in chosen.tolist()]

        return Pairs(taken(self.images), taken(self.texts), taken(self.words), self.sides[chosen],
                     {name: values[chosen] for name, values in self.scores.items()})


class Rule(NamedTuple):
    """name: also of the option. says: what it drops, with {} for the threshold. kind: type of the
    threshold. default: threshold, None: left out. keep: pairs and threshold -> bool [n]."""

    name: str
    says: str
    kind: type
    default: float | int | None
    keep: Callable[[Pairs, object], np.ndarray]


def each(test: Callable) -> Callable:
    """A rule about one text, from `test(text, words, threshold)`."""
    return lambda pairs, threshold: np.array(
        [test(text, words, threshold) for text, words in zip(pairs.texts, pairs.words)], bool)


def keep_large(pairs: Pairs, least) -> np.ndarray:
    """Whose shorter side has so many pixels."""
    return pairs.sides.min(axis=1) >= least


def keep_compact(pairs: Pairs, most) -> np.ndarray:
    """Whose longer side is at most so many times the shorter one."""
    return pairs.sides.max(axis=1) <= most * np.maximum(pairs.sides.min(axis=1), 1)


def is_plain(text: str, words, least: float) -> bool:
    """Whether so large a share of the text is letters and blanks, without links, markup, special
    words or a character five times in a row."""
    good = sum(character.isspace() or unicodedata.category(character)[0] in "LM"
               for character in text)
    return (good >= least * max(len(text), 1) and not LINK.search(text)
            and not REPEATED.search(text) and not any(token in text for token in SPECIAL_TOKENS))


def keep_language(pairs: Pairs, wanted: str) -> np.ndarray:
    """What a model of languages takes for this one (ISO 639-1). Of short texts it is often wrong.

    Raises:
        UserError: the package that tells languages apart is missing, or does not know this one.
    """
    try:
        import py3langid  # an extra
    except ImportError:
        raise UserError(MISSING.format("--language", "py3langid", "clean")) from None
    known = {name for name, _ in py3langid.rank("")}
    if wanted not in known:
        raise UserError(f"--language is {wanted!r}, which is none of the {len(known)} codes of two "
                        "or three letters that are known, such as en, de or zh.")
    return np.array([py3langid.classify(text)[0] == wanted for text in pairs.texts], bool)


def keep_known(pairs: Pairs, most: float) -> np.ndarray:
    """Of whose words at most this share is in no other text."""
    found = Counter(word for words in pairs.words for word in set(words))
    rare = np.array([sum(found[word] == 1 for word in words) for words in pairs.words])
    return rare <= most * np.maximum([len(words) for words in pairs.words], 1)


def keep_specific(pairs: Pairs, most: int) -> np.ndarray:
    """Whose words are those of at most so many images: others are of a site, not of an image."""
    images: dict[tuple, set] = {}
    for words, image in zip(pairs.words, pairs.images):
        images.setdefault(tuple(words), set()).add(image)
    return np.array([len(images[tuple(words)]) <= most for words in pairs.words], bool)


def keep_scored(name: str) -> Callable:
    """A rule about a score: at least so high. Pairs without a score are dropped."""
    def keep(pairs: Pairs, least: float) -> np.ndarray:
        if name not in pairs.scores:
            raise UserError(f"--{name} is {least}, but the rows have no {name!r}; make them with "
                            "`albef score`.")
        return pairs.scores[name] >= least  # nan is not

    return keep


def keep_best(pairs: Pairs, most: int) -> np.ndarray:
    """The `most` best texts of each image: of the highest itm or itc, else the longest."""
    scores = next((pairs.scores[name] for name in SCORES if name in pairs.scores),
                  np.array([len(words) for words in pairs.words], float))
    seen, keep = Counter(), np.zeros(len(pairs.images), bool)
    for row in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable").tolist():
        keep[row] = seen[pairs.images[row]] < most
        seen[pairs.images[row]] += 1
    return keep


RULES = (
    Rule("min-side", "the image cannot be read, or has a side below {} pixels", int, 64,
         keep_large),
    Rule("max-aspect", "one side of the image is more than {} times the other", float, 4.0,
         keep_compact),
    Rule("min-letters", "less than a share of {} is letters, or there are links, markup, special "
         "words or repeated characters", float, 0.8, each(is_plain)),
    Rule("min-words", "less than {} words", int, 3,
         each(lambda text, words, least: len(words) >= least)),
    Rule("max-words", "more than {} words", int, 60,
         each(lambda text, words, most: len(words) <= most)),
    Rule("language", "not in the language {}", str, None, keep_language),
    Rule("max-rare", "more than a share of {} of the words are in no other text", float, 0.5,
         keep_known),
    Rule("max-images", "the same words are with more than {} images", int, 10, keep_specific),
    Rule("itc", "itc below {}", float, None, keep_scored("itc")),
    Rule("itm", "itm below {}", float, None, keep_scored("itm")),
    Rule("best", "not one of the {} best texts of the image", int, 1, keep_best))


class Dropped(NamedTuple):
    """What a rule dropped: `rows` of the pairs that were given, `left` pairs after it."""

    rule: Rule
    threshold: object
    rows: np.ndarray
    left: int


def clean_pairs(pairs: Pairs, thresholds: dict) -> tuple[np.ndarray, list[Dropped]]:
    """Applies `RULES` in turn, each to what the ones before it left.

    Args:
        thresholds: by name; the defaults stand for those that are not there, None leaves a rule
            out.

    Returns:
        The rows that are left, and what each rule that was applied dropped.
    """
    left, dropped = np.arange(len(pairs.images)), []
    for rule in RULES:
        threshold = thresholds.get(rule.name, rule.default)
        if threshold is not None:
            keep = rule.keep(pairs.rows(left), threshold)
            rows, left = left[~keep], left[keep]
            dropped.append(Dropped(rule, threshold, rows, len(left)))
    return left, dropped


def read_thresholds(arguments: Sequence[str]) -> dict:
    """Thresholds by name of arguments `--RULE=VALUE`; 'off' is None.

    Raises:
        UserError: there is no such rule, or the value is none.
    """
    rules, thresholds = {rule.name: rule for rule in RULES}, {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in rules or not value:
            raise UserError(f"{argument!r} is not understood; write --RULE=VALUE with one of the "
                            f"rules {', '.join(rules)}.")
        try:
            thresholds[name] = None if value == "off" else rules[name].kind(value)
        except ValueError:
            thresholds[name] = float("nan")
        if thresholds[name] != thresholds[name]:
            raise UserError(f"{argument} must have a {'whole ' * (rules[name].kind is int)}number, "
                            "or 'off'.")
    return thresholds
