"""What scenes of each level may contain."""

from collections.abc import Mapping
import dataclasses
import functools
import itertools

from albef_jax.errors import UserError

COLOURS = {
    "red": (222, 30, 38), "green": (35, 150, 55), "blue": (35, 75, 225),
    "yellow": (252, 226, 40), "orange": (250, 130, 10), "purple": (130, 40, 175),
    "pink": (255, 150, 205), "brown": (112, 62, 26), "white": (252, 252, 252),
    "black": (14, 14, 16), "cyan": (40, 215, 225), "lime": (165, 240, 40),
    "grey": (165, 168, 172),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "hexagon",
          "moon", "arrow", "drop")
TEXTURES = ("plain", "striped", "dotted", "checked")
RELATIONS = ("left of", "right of", "above", "below", "near", "far from")
BACKGROUNDS = ("plain", "shaded", "speckled", "checkered")
Kind = tuple[str, str, str]  # colour, shape, texture


@dataclasses.dataclass(frozen=True)
class Level:
    """How hard scenes are."""

    name: str
    side: int  # of the image in pixels
    grid: int  # cells per side, with at most one object near the middle; 0: objects are anywhere
    brightness: tuple[int, int]  # least and largest of the backgrounds, 0..255
    objects: tuple[int, int]  # least and largest number
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]  # name -> least and largest diameter in pixels
    textures: tuple[str, ...]
    relations: tuple[str, ...]  # those that captions speak of
    mentioned: float  # share of the objects' sizes and of their textures that captions speak of
    related: float  # share of captions with a relation
    setting: bool  # captions speak of the background and of places in the image too
    max_words: int  # of a caption
    curtain: int  # brightness of what hides a part of the image, unlike all backgrounds and objects

    @property
    def words(self) -> tuple[str, ...]:
        """The words for colours and shapes: what only the image can tell."""
        return self.colours + self.shapes

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """The words for each feature of an object."""
        return {"colour": self.colours, "shape": self.shapes, "size": tuple(self.sizes),
                "texture": self.textures}

    @functools.cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of objects."""
        return tuple(itertools.product(self.colours, self.shapes, self.textures))

    @functools.cached_property
    def held_out_kinds(self) -> tuple[Kind, ...]:
        """The kinds that no training scene holds: about a fifth of every colour's and shape's.

        Each pair of colour and shape is seen in training, with other textures.
        """
        return tuple(
            (colour, shape, texture) for i, colour in enumerate(self.colours)
            for j, shape in enumerate(self.shapes) for k, texture in enumerate(self.textures)
            if (i + 2 * j + k) % 5 == 0)

    @functools.cached_property
    def train_kinds(self) -> tuple[Kind, ...]:
        """The kinds of training scenes."""
        return tuple(kind for kind in self.kinds if kind not in self.held_out_kinds)


DEMO = Level(
    name="demo", side=96, grid=4, brightness=(26, 46), objects=(2, 3),
    colours=("red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "cyan", "grey"),
    shapes=SHAPES[:8], sizes={"small": (15, 16), "large": (21, 22)}, textures=TEXTURES[:3],
    relations=RELATIONS[:4], mentioned=0.85, related=0.6, setting=False, max_words=17, curtain=110)
FULL = Level(
    name="full", side=128, grid=0, brightness=(112, 158), objects=(2, 6),
    colours=tuple(COLOURS)[:12], shapes=SHAPES,
    sizes={"small": (14, 18), "medium": (24, 30), "large": (38, 48)}, textures=TEXTURES,
    relations=RELATIONS, mentioned=0.6, related=0.8, setting=True, max_words=36, curtain=45)
LEVELS = {level.name: level for level in (DEMO, FULL)}


def get_level(name: str) -> Level:
    """The level of a name; raises UserError if there is no such level."""
    if name not in LEVELS:
        raise UserError(f"The scenes level {name!r} is unknown; use one of {sorted(LEVELS)}.")
    return LEVELS[name]
