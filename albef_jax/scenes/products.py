"""Products that are drawn and sounded: what each is, and what each of its modalities says of it.

A product is one of several copies of an instance, which has a value for each property. Each
modality says some of them, as `SAID` has it; the rest of it is chance. Products of a category (a
kind for a use) differ in brand, looks, material and so on; near-duplicates, the instances of a
family, differ only in the properties `OWN`, each of which a single modality tells. Graph of one:

    {"instance": 17, "family": 1, "category": "garden lamp",
     "values": {"kind": "lamp", "use": "garden", "brand": "Norda", ...},
     "says": {"title": {"brand": "Norda", "series": "Brio"}, "regions": {...}, ...},
     "wrong": ["video"]}

`says` has the modalities that the product does not lack, in the order of `SAID`; those in `wrong`
say what another instance is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from albef_jax.errors import UserError
from albef_jax.scenes.graph import SPLITS, pick
from albef_jax.scenes.render import background, paint

VERSION = 1  # what a seed gives changes with it
KINDS = {  # kind -> shapes; the first and the last are those of a neighbour, too
    "lamp": ("drop", "triangle", "star"), "clock": ("star", "diamond", "square"),
    "toy": ("square", "arrow", "moon"), "bell": ("moon", "heart", "drop")}
USES = {  # use -> motions, materials: each leaves two uses, both together one
    "garden": (("turns", "slides"), ("wood", "glass")),
    "kitchen": (("slides", "grows"), ("metal", "plastic")),
    "office": (("grows", "blinks"), ("wood", "glass")),
    "travel": (("blinks", "turns"), ("metal", "plastic"))}
CATEGORIES = {f"{use} {kind}": {"kind": kind, "use": use}
              for kind, use in itertools.product(KINDS, USES)}
VALUES = {  # of properties that the category does not decide
    "brand": ("Norda", "Velox", "Tamo", "Quill", "Oster", "Pinto"),
    "colour": ("red", "green", "blue", "yellow", "purple", "pink", "white", "cyan"),
    "texture": ("plain", "striped", "dotted"),
    "size": ("tiny", "small", "large", "giant"),
    "tempo": ("slow", "brisk", "quick"),
    "series": ("Alto", "Brio", "Coro", "Duo", "Echo"),
    "year": ("2016", "2017", "2018", "2019", "2020"),
    "extra": ("square", "cross", "heart", "star", "triangle"),
    "way": ("forth", "back"),
    "melody": ("rising", "falling")}
OWN = ("series", "extra", "year", "way", "melody")  # of title, image, table, video and sound
SAID = {  # modality -> property -> how often it says it
    "title": {"brand": 0.9, "series": 1.0, "kind": 0.6, "colour": 0.4, "use": 0.15},
    "regions": {"shape": 1.0, "colour": 1.0, "texture": 1.0, "extra": 1.0},
    "table": {"year": 1.0, "use": 0.6, "material": 0.5, "size": 0.4, "brand": 0.3, "colour": 0.3,
              "texture": 0.2, "motion": 0.15},
    "video": {"motion": 1.0, "tempo": 1.0, "way": 1.0, "shape": 1.0, "colour": 1.0},
    "audio": {"material": 1.0, "size": 1.0, "tempo": 1.0, "melody": 1.0}}
PRESENCE = (1.0, 0.95, 0.9, 0.65, 0.5)  # of the modalities
VARIANTS = 12  # instances of a family, of 32 possible ones
FILLERS = ("new", "original", "best price", "as a gift", "with warranty", "in stock")

SIDE, FRAME_SIDE, FRAMES = 48, 16, 8  # pixels of the image and of a frame; frames of a clip
FINER = 2  # frames are drawn so much larger
CORNERS = ((8, 8), (40, 8), (8, 40), (40, 40))  # where the extra is, in pixels of the image
SOUND_RATE = 8000  # Hz; a sound lasts a second
PITCHES = {"giant": 180, "large": 340, "small": 650, "tiny": 1230}  # Hz
BEATS = {"slow": 1, "brisk": 2, "quick": 3}  # cycles of a clip; of sounds twice as many
TURN = 0.45  # radians to each side: less than what looks the same again of a square or a star
SPAN = 1.5  # from the lowest to the highest beat of a melody
TIMBRES = {  # material -> partials as (frequency, loudness), and decay per second
    "wood": (((1, 1.0),), 30), "glass": (((1, 0.4), (3, 1.0)), 8),
    "metal": (((1, 0.7), (1.38, 0.5), (2.76, 0.5)), 4),
    "plastic": (((1, 0.8), (2, 0.4), (3, 0.27), (4, 0.2)), 30)}


def check(split, size, seed, copies, presence, wrong):
    """Raises UserError at an option of `Products` that is out of range."""
    if split not in SPLITS:
        raise UserError(f"The split {split!r} of products is unknown; use one of "
                        f"{list(SPLITS)}.")
    if min(size, copies) < 1 or not 0 <= seed < 2**32:
        raise UserError(f"Products need size >= 1, copies >= 1 and a seed of 32 bits, not "
                        f"{size}, {copies} and {seed}.")
    shares = (*presence, wrong)
    if len(presence) != len(SAID) or min(shares) < 0 or max(shares) > 1 or not any(presence):
        raise UserError(f"Products need {len(SAID)} shares of presence and a share of wrong "
                        f"modalities, all between 0 and 1, not {presence} and {wrong}.")


class Products:
    """The products 0 .. size-1 of a split; pure functions of the seed.

    Args:
        split: 'train' or 'heldout': other instances of the same categories.
        size: number of products. seed: of everything.
        copies: products of each instance.
        presence: how often each modality is there, in the order of `SAID`; one always is.
        wrong: share of modalities that show another instance.

    Attributes:
        instances: the property values of each instance. families: the family of each.

    Raises:
        UserError: an option is out of range.
    """

    def __init__(self, split: str = "train", size: int = 2400, seed: int = 0, copies: int = 4,
                 presence: Sequence[float] = PRESENCE, wrong: float = 0.0):
        check(split, size, seed, copies, presence, wrong)
        self._key, self.size, self._copies = (seed, SPLITS.index(split)), size, copies
        self._presence, self.wrong = presence, wrong
        count = -(-size // copies)
        families = [_family(self._rng(0, number)) for number in range(-(-count // VARIANTS))]
        self.instances = [instance for family in families for instance in family][:count]
        self.families = [number // VARIANTS for number in range(count)]

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox([*self._key, 77, *stream]))

    def rng(self, index: int, stream: int) -> np.random.Generator:
        """The generator of one part of one product."""
        return self._rng(1 + stream, index)

    def graph(self, index: int) -> dict:
        """See this module."""
        rng, number = self.rng(index, 0), index // self._copies
        present = rng.random(len(SAID)) < self._presence
        if not present.any():
            present[int(np.argmax(self._presence))] = True
        says, wrong = {}, []
        for (modality, shares), there in zip(SAID.items(), present.tolist()):
            draws, is_wrong, other = rng.random(len(shares)), rng.random(), rng.random()
            values = self.instances[number]
            if there and is_wrong < self.wrong and len(self.instances) > 1:
                wrong.append(modality)
                step = 1 + int(other * (len(self.instances) - 1))
                values = self.instances[(number + step) % len(self.instances)]
            if there:
                says[modality] = {name: values[name] for (name, share), draw
                                  in zip(shares.items(), draws) if draw < share}
        values = self.instances[number]
        return {"instance": number, "family": self.families[number],
                "category": f"{values['use']} {values['kind']}", "values": values, "says": says,
                "wrong": wrong}


def _family(rng: np.random.Generator) -> list[dict[str, str]]:
    """Near-duplicates: the same but for `OWN`, of which each has one of two values."""
    common = dict(pick(rng, list(CATEGORIES.values())))
    motions, materials = USES[common["use"]]
    common |= {"shape": pick(rng, KINDS[common["kind"]]), "motion": pick(rng, motions),
               "material": pick(rng, materials)}
    common |= {name: pick(rng, values) for name, values in VALUES.items() if name not in OWN}
    options = [[VALUES[name][i] for i in rng.permutation(len(VALUES[name]))[:2]] for name in OWN]
    variants = list(itertools.product(*options))
    return [common | dict(zip(OWN, variants[i]))
            for i in rng.permutation(len(variants))[:VARIANTS]]


def title(says: dict[str, str], rng: np.random.Generator) -> str:
    """A title that names what it says, and nothing else of the product."""
    words = [says[name] for name in ("brand", "series", "colour", "use") if name in says]
    words.append(says.get("kind", "item"))
    fillers = [word for word in FILLERS if rng.random() < 0.2]
    return " ".join(words + fillers if rng.random() < 0.5 else fillers + words)


def table(says: dict[str, str], rng: np.random.Generator) -> list[tuple[str, str]]:
    """What it says as pairs, in any order."""
    pairs = list(says.items())
    return [pairs[i] for i in rng.permutation(len(pairs))]


def image(says: dict[str, str], rng: np.random.Generator) -> tuple[np.ndarray, list[list[int]]]:
    """The object, something small beside it, and a quiet background.

    Returns:
        uint8 [SIDE, SIDE, 3], and the boxes x0, y0, x1, y1 of both.
    """
    pixels = background(_ground(rng), SIDE)
    extra = {"shape": says["extra"], "colour": "grey", "texture": "plain"}
    corner = pick(rng, CORNERS) + rng.uniform(-1, 1, 2)
    things = [_placed(says, SIDE / 2 + rng.uniform(-3, 3, 2), rng.uniform(24, 27), SIDE),
              _placed(extra, corner, rng.uniform(10, 11), SIDE)]
    for thing in things:
        paint(pixels, thing)
    return (pixels + 0.5).astype(np.uint8), [thing["box"] for thing in things]


def clip(says: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """Frames of the object turning, sliding, growing or blinking: uint8 [FRAMES, s, s, 3]."""
    side, ground = FRAME_SIDE * FINER, _ground(rng)
    centre, diameter, start = side / 2 + rng.uniform(-1, 1, 2), rng.uniform(15, 17), rng.random()
    sign, frames = 1 if says["way"] == "forth" else -1, []
    for number in range(FRAMES):
        phase = sign * 2 * math.pi * (BEATS[says["tempo"]] * number / FRAMES + 0.05 * start)
        moved = _moved(says["motion"], centre, diameter, phase)
        pixels = background(ground, side)
        paint(pixels, _placed(says | {"texture": "plain"}, *moved[:2], side) | moved[2])
        frames.append(pixels.reshape(FRAME_SIDE, FINER, FRAME_SIDE, FINER, 3).mean((1, 3)))
    return (np.stack(frames) + 0.5).astype(np.uint8)


def _moved(motion: str, centre: np.ndarray, diameter: float, phase: float):
    """Where the object is at a phase, how large, and what else of it changes."""
    swing = math.sin(phase)
    return {"turns": lambda: (centre, diameter, {"angle": TURN * swing}),
            "slides": lambda: (centre + [6 * swing, 0], diameter, {}),
            "grows": lambda: (centre, diameter * (1 + 0.4 * swing), {}),
            "blinks": lambda: (centre, diameter, {"dim": 0.4 - 0.4 * swing})}[motion]()


def sound(says: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """A second of beats, float32 [SOUND_RATE]: their pitch, number and timbre, and the melody."""
    beats = 2 * BEATS[says["tempo"]]
    length = SOUND_RATE // beats
    time = np.arange(length) / SOUND_RATE
    partials, decay = TIMBRES[says["material"]]
    steps = np.linspace(0, 1, beats) if says["melody"] == "rising" else np.linspace(1, 0, beats)
    pitch = PITCHES[says["size"]] * rng.uniform(0.97, 1.03)
    samples = np.zeros(SOUND_RATE)
    for number, step in enumerate(steps):
        hertz = pitch * SPAN ** step
        wave = sum(loud * np.sin(2 * np.pi * hertz * share * time) for share, loud in partials
                   if hertz * share < SOUND_RATE / 2)
        samples[number * length:(number + 1) * length] = wave * np.exp(-decay * time)
    return (0.3 * samples + rng.normal(0, 0.01, SOUND_RATE)).astype(np.float32)


def _ground(rng: np.random.Generator) -> dict:
    """A dark, greyish background."""
    base = rng.uniform(26, 46) + rng.uniform(-8, 8, 3)
    return {"kind": pick(rng, ("plain", "shaded", "speckled")), "seed": int(rng.integers(2**31)),
            "colours": np.clip([base, 1.15 * base], 8, 60).tolist()}


def _placed(looks: dict, centre, diameter: float, side: int) -> dict:
    """An object as `render.paint` draws it; its box has room for it at any angle."""
    x, y = (float(place) for place in centre)
    reach = diameter / 2 * (math.sqrt(2) if "motion" in looks else 1)
    box = [math.floor(x - reach), math.floor(y - reach), math.ceil(x + reach), math.ceil(y + reach)]
    box = [min(max(edge, 0), side) for edge in box]
    return {name: looks[name] for name in ("shape", "colour", "texture")} | {
        "centre": [x, y], "diameter": float(diameter), "box": box}


# ---- what the modalities tell at most ------------------------------------------------------

PROPERTIES = ("kind", "use", "shape", "motion", "material", *VALUES)


@functools.cache
def _numbers(name: str) -> dict[str, int]:
    """The values of a property, numbered."""
    known = {"kind": tuple(KINDS), "use": tuple(USES),
             "shape": sorted({shape for shapes in KINDS.values() for shape in shapes}),
             "motion": sorted({motion for motions, _ in USES.values() for motion in motions}),
             "material": sorted({one for _, materials in USES.values() for one in materials})}
    return {value: number for number, value in enumerate(known.get(name) or VALUES[name])}


def ceilings(products: Products, subset: Sequence[str], graphs: Sequence[dict] = ()) -> dict:
    """What nobody can do better who knows how products are made and sees a subset of modalities.

    Posteriors follow from the graphs: of categories by the way products are drawn, and for finding
    products, of the instances that there are. A query finds the product that is likeliest alike, in
    the mean over those that are equally likely.

    Args:
        products: all of which are queries and gallery. subset: modalities, of `SAID`.
        graphs: of the products, if they are there.

    Returns:
        In percent: `accuracy` (category), and `coarse` and `fine`, the share of queries whose first
        hit has the same category, or is the same instance.
    """
    graphs = graphs or [products.graph(index) for index in range(products.size)]
    names = list(CATEGORIES)
    category = np.array([names.index(graph["category"]) for graph in graphs])
    instance = np.array([graph["instance"] for graph in graphs])
    of_category = _posterior(graphs, subset, _category_shares(), products.wrong)
    of_instance = _posterior(graphs, subset, _instance_shares(products.instances), products.wrong)
    kinds = np.zeros((len(products.instances), len(names)))  # which category an instance is of
    kinds[instance, category] = 1
    return {"accuracy": 100 * float(np.mean(_first(of_category)[np.arange(len(graphs)), category])),
            "coarse": _first_hits(of_instance @ kinds, category),
            "fine": _first_hits(of_instance, instance)}


def _category_shares() -> dict[str, np.ndarray]:
    """Property -> the probability of each value in each category, [categories, values]."""
    shares = {name: np.zeros((len(CATEGORIES), len(_numbers(name)))) for name in PROPERTIES[:5]}
    for row, category in enumerate(CATEGORIES.values()):
        motions, materials = USES[category["use"]]
        likely = {"kind": (category["kind"],), "use": (category["use"],),
                  "shape": KINDS[category["kind"]], "motion": motions, "material": materials}
        for name, values in likely.items():
            shares[name][row, [_numbers(name)[value] for value in values]] = 1 / len(values)
    return shares


def _instance_shares(instances: Sequence[dict]) -> dict[str, np.ndarray]:
    """As `_category_shares`, of instances: 1 for their value."""
    return {name: np.eye(len(_numbers(name)))[[_numbers(name)[one[name]] for one in instances]]
            for name in PROPERTIES}


def _posterior(graphs, subset, shares, wrong: float) -> np.ndarray:
    """Probability of each class given what a subset says, [products, classes]."""
    classes = len(next(iter(shares.values())))
    posterior = np.ones((len(graphs), classes))
    for row, graph in enumerate(graphs):
        for modality in subset:
            likely = np.ones(classes)
            for name, value in graph["says"].get(modality, {}).items():
                if name in shares:
                    likely = likely * shares[name][:, _numbers(name)[value]]
            posterior[row] *= (1 - wrong) * likely + wrong * likely.mean()
    return posterior / posterior.sum(axis=1, keepdims=True)


def _first(scores: np.ndarray) -> np.ndarray:
    """Which column of each row is chosen, shared among the equally good: [n, m], rows sum to 1."""
    best = np.isclose(scores, scores.max(axis=1, keepdims=True), rtol=1e-9, atol=0)
    return best / best.sum(axis=1, keepdims=True)


def _first_hits(posterior: np.ndarray, truth: np.ndarray) -> float:
    same = posterior @ posterior.T
    np.fill_diagonal(same, -1)
    return 100 * float(np.mean(np.sum(_first(same) * (truth[:, None] == truth), axis=1)))


def describe(products: Products):
    """Yields a line for each subset of modalities: what it tells at most."""
    graphs = [products.graph(index) for index in range(products.size)]
    having = {name: np.mean([name in graph["says"] for graph in graphs]) for name in SAID}
    yield (f"{products.size} products, {len(products.instances)} instances in "
           f"{products.families[-1] + 1} families, {len(CATEGORIES)} categories; "
           + ", ".join(f"{name} {100 * share:.0f}%" for name, share in having.items()))
    yield f"{'':38s}accuracy  coarse mAP@1  fine mAP@1"
    for length in range(1, len(SAID) + 1):
        for subset in itertools.combinations(SAID, length):
            best = ceilings(products, subset, graphs)
            yield (f"{' + '.join(subset):38s}{best['accuracy']:7.1f}%{best['coarse']:13.1f}%"
                   f"{best['fine']:11.1f}%")
