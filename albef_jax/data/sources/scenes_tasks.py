"""Downstream tasks on rendered scenes: the images of `ScenesSource`, other texts and labels."""

import functools

import numpy as np

from albef_jax.data.sources.base import Source, pairs
from albef_jax.data.sources.scenes_source import REMEMBERED, ScenesSource
from albef_jax.errors import UserError
from albef_jax.scenes.contrasts import KINDS, contrast
from albef_jax.scenes.curtains import draw_curtain
from albef_jax.scenes.generate import VERSION
from albef_jax.scenes.graph import pick, sample_graph, scene_rng
from albef_jax.scenes.hypotheses import LABELS, suppose
from albef_jax.scenes.phrases import kinds_of, point_out
from albef_jax.scenes.proposals import propose, width_height
from albef_jax.scenes.questions import answer_list, ask
from albef_jax.scenes.statements import Statements


def part(number: int):
    """A method for that part of what `SceneTask._make` makes."""
    return lambda self, index: self._example(index)[number]


class SceneTask(ScenesSource):
    """`per_scene` examples of each scene: example `scene * per_scene + number`.

    Texts, labels and derived images are functions of the seed, the split and the index.

    Args:
        level, split, size, seed, data_dir: see `ScenesSource`; `size` counts scenes.
        per_scene: examples of each scene.

    Raises:
        UserError: an option is unknown or out of range, or the scenes cannot be stored.
    """

    task = ""
    stream = 0  # of random numbers, see `scenes.graph.scene_rng`
    limits = ScenesSource.limits | dict(per_scene=(1, 4096))
    multiple, least = 1, 1  # what `per_scene` is a multiple of, and the least `size`

    def __init__(self, level: str = "demo", split: str = "train", size: int = 20000, seed: int = 0,
                 per_scene: int = 4, data_dir: str = ""):
        super().__init__(level, split, size, seed, data_dir=data_dir)
        self._per_scene = per_scene
        self._kinds = kinds_of(level, split)
        self._example = functools.lru_cache(REMEMBERED)(self._make)
        self.fingerprint = (f"{self.task} {VERSION} {level} {split} size={size} seed={seed} "
                            f"per_scene={per_scene}")
        self._open()

    @classmethod
    def check(cls, size=20000, per_scene=4, **others):
        """What `size` and `per_scene` must be for this task; see `Source.check`."""
        if per_scene % cls.multiple or size < cls.least:
            raise UserError(f"A source {cls.task} needs a per_scene that is a multiple of "
                            f"{cls.multiple} and a size of at least {cls.least}, not {per_scene} "
                            f"and {size}.")

    def _open(self) -> None:
        """Called once, when the scenes are there."""

    def _make(self, index: int) -> tuple:
        """What the example is made of, the text first."""
        raise NotImplementedError

    def _rng(self, index: int) -> np.random.Generator:
        return scene_rng(self._seed, self._split, index, self.stream)

    def __len__(self) -> int:
        return self._size * self._per_scene

    def name(self, index: int) -> str:
        return f"{super().name(self.image_id(index))} {self.task} {index}"

    def image_id(self, index: int) -> int:
        return index // self._per_scene

    def image(self, index: int) -> np.ndarray:
        return super().image(self.image_id(index))

    def text(self, index: int) -> list[str]:
        return [self._example(index)[0]]

    def describes(self, owner: int, text: int, index: int) -> bool:
        return Source.describes(self, owner, text, index)


class ScenesVqaSource(SceneTask):
    """Questions with one answer each, see `scenes.questions`."""

    task, stream = "scenes_vqa", 10
    question_type = part(2)

    def _make(self, index):
        graph = self.graph(self.image_id(index))
        return ask(graph, self._level, self._kinds, self._rng(index))

    @property
    def fields(self):
        return pairs("question") | {"answers": {"choices": answer_list(self._level)},
                                    "question_type": {}}

    def answers(self, index: int) -> list[tuple[str, float]]:
        return [(self._example(index)[1], 1.0)]


class ScenesVeSource(SceneTask):
    """Hypotheses about scenes with a curtain in some of them, see `scenes.hypotheses`."""

    task, stream = "scenes_ve", 11
    fields = pairs() | {"label": {"class_names": LABELS}}
    hypothesis = part(1)  # the logical form of the text
    curtain = part(2)  # its box x0, y0, x1, y1 in pixels, None without
    label = part(3)

    def _make(self, index):
        graph = self.graph(self.image_id(index))
        # Three examples in a row have the three labels, in any order.
        order = scene_rng(self._seed, self._split, index // 3, self.stream, 1).permutation(3)
        return suppose(graph, self._level, self._kinds, int(order[index % 3]), self._rng(index))

    def image(self, index: int) -> np.ndarray:
        return draw_curtain(super().image(index), self.curtain(index), self._level)


class ScenesGroundingSource(SceneTask):
    """Phrases that mean one object, its box, and boxes to choose from."""

    task, stream = "scenes_grounding", 12
    fields = pairs() | {"box": {}, "size": {}, "proposals": {}}
    target = part(1)  # the number of the object that is meant
    proposals = part(2)

    def _make(self, index):
        graph, rng = self.graph(self.image_id(index)), self._rng(index)
        phrase, target = point_out(graph, self._level, rng)
        return phrase, target, propose(graph, target, rng)

    def box(self, index: int) -> tuple[float, float, float, float]:
        objects = self.graph(self.image_id(index))["objects"]
        return width_height(objects[self.target(index)]["box"])

    def size(self, index: int) -> tuple[int, int]:
        return self._level.side, self._level.side


class ScenesNlvrSource(SceneTask):
    """Statements about two scenes, see `scenes.statements`.

    Examples 2i and 2i + 1 share a statement, which is true of the one and false of the other.
    `per_scene` examples have a statement about a scene and others.
    """

    task, stream = "scenes_nlvr", 13
    fields = pairs(views=2) | {"label": {"class_names": ("false", "true")}, "group": {}}
    multiple, least = 2, 64
    group = part(0)
    statement = part(1)  # the logical form of the text
    scenes = part(2)  # on the left and on the right
    label = part(3)

    def _open(self):
        # Made again, not read: a statement looks for its scenes among all graphs.
        graphs = [sample_graph(self._level, self._split, i, self._seed) for i in range(self._size)]
        self._statements = Statements(graphs, self._level)
        self._made = functools.lru_cache(REMEMBERED)(self._make_statement)

    def _make_statement(self, number):
        rng = self._rng(number)
        text, statement, *pairs = self._statements.make(2 * number // self._per_scene, rng)
        order = pick(rng, ((0, 1), (1, 0)))
        return text, statement, [pairs[i] for i in order], [1 - i for i in order]

    def _make(self, index):
        text, statement, pairs, labels = self._made(index // 2)
        return text, statement, pairs[index % 2], labels[index % 2]

    def image_id(self, index: int) -> int:
        return index

    def image(self, index: int) -> list[np.ndarray]:
        return [ScenesSource.image(self, scene) for scene in self.scenes(index)]


class ScenesContrastsSource(SceneTask):
    """True captions beside ones that are false by one thing, see `scenes.contrasts`.

    Examples in a row are of the kinds in turn; a scene that does not give a pair of a kind leaves
    it to the next one that does.
    """

    task, stream = "scenes_contrasts", 14
    fields = pairs() | {"foil": {}, "kind": {}}
    foil = part(1)
    scene = part(2)

    def __init__(self, level: str = "demo", split: str = "heldout", size: int = 512, seed: int = 0,
                 per_scene: int = len(KINDS), data_dir: str = ""):
        super().__init__(level, split, size, seed, per_scene, data_dir)

    def _make(self, index):
        rng = self._rng(index)
        for scene in range(self._size):
            scene = (index // self._per_scene + scene) % self._size
            made = contrast(self.graph(scene), self._level, self.kind(index), rng)
            if made:
                return made[0], made[1], scene
        raise UserError(f"No scene of {self.task} gives captions with {self.kind(index)}; raise "
                        "its size.")

    def kind(self, index: int) -> str:
        return [*KINDS][index % len(KINDS)]

    def image_id(self, index: int) -> int:
        return self.scene(index)
