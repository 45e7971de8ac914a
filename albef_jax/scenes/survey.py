"""What a level and its tasks are like: what texts tell and give away, and a sheet to look at."""

from collections import Counter, defaultdict
from collections.abc import Iterator
import itertools
import json
import textwrap

import numpy as np
from PIL import Image, ImageDraw

from albef_jax.scenes.captions import is_true
from albef_jax.scenes.curtains import draw_curtain
from albef_jax.scenes.generate import generate
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.hypotheses import LABELS, suppose
from albef_jax.scenes.levels import get_level
from albef_jax.scenes.phrases import kinds_of, point_out
from albef_jax.scenes.questions import ask
from albef_jax.scenes.render import render
from albef_jax.scenes.statements import Statements

STREAM = 20  # of random numbers; those of the sources are others
LEARNT = 8  # training examples of a survey per example that is asked
TEXT_WIDTH, LINE_HEIGHT, LETTERS = 250, 12, 40  # pixels, pixels, and letters in a line


def oracle(scenes: list[dict]) -> np.ndarray:
    """Of how many of the scenes each caption is true: int [captions].

    A perfect text-to-image ranking finds the image of a caption that is true of c scenes with
    probability 1 / c.
    """
    graphs = [json.loads(scene["graph"]) for scene in scenes]
    forms = [form for scene in scenes for form in json.loads(scene["forms"])]
    return np.array([sum(is_true(form, graph) for graph in graphs) for form in forms])


class Tasks:
    """Examples of all tasks on the scenes 0 .. size-1 of a split, without stored images."""

    def __init__(self, level: str, split: str, seed: int, size: int):
        self._level, self._kinds = get_level(level), kinds_of(level, split)
        self.graphs = [sample_graph(self._level, split, i, seed) for i in range(size)]
        self._rngs = lambda: (scene_rng(seed, split, i, STREAM) for i in range(size))

    def questions(self):
        return [ask(graph, self._level, self._kinds, rng)
                for graph, rng in zip(self.graphs, self._rngs())]

    def hypotheses(self):
        return [suppose(graph, self._level, self._kinds, label, rng) for graph, label, rng in
                zip(self.graphs, itertools.cycle(range(len(LABELS))), self._rngs())]

    def statements(self):
        statements = Statements(self.graphs, self._level)
        return [statements.make(i, rng) for i, rng in enumerate(self._rngs())]

    def phrases(self):
        return [point_out(graph, self._level, rng) for graph, rng in zip(self.graphs, self._rngs())]


def describe_tasks(level: str, seed: int, size: int) -> Iterator[str]:
    """One line per task on `size` held-out scenes: shares, and the score of a blind guess.

    The blind guess is the commonest answer to the same text in training.
    """
    train = Tasks(level, "train", seed, LEARNT * size)
    asked = Tasks(level, "heldout", seed, size)
    learnt, tested = train.questions(), asked.questions()
    guess = _blind(learnt)
    types = defaultdict(list)
    for text, answer, kind in tested:
        types[kind].append(guess(text) == answer)
    yield "questions: " + ", ".join(
        f"{kind} {100 * len(right) / size:.0f}% (blind {100 * np.mean(right):.0f}%)"
        for kind, right in sorted(types.items()))
    yield _compared("questions", guess, [(text, answer) for text, answer, _ in tested])
    forms = Counter(statement["which"] for _, statement, _, _ in asked.statements())
    yield "statements, each once true and once false: " + ", ".join(
        f"{which} {100 * count / size:.0f}%" for which, count in forms.most_common())
    learnt, tested = train.hypotheses(), asked.hypotheses()
    guess = _blind((text, label) for text, *_, label in learnt)
    hidden = defaultdict(list)
    for _, _, curtain, label in tested:
        hidden[label].append(curtain is not None)
    yield "hypotheses: " + ", ".join(
        f"{LABELS[label]} {100 * len(curtains) / size:.0f}% (a curtain in "
        f"{100 * np.mean(curtains):.0f}%)" for label, curtains in sorted(hidden.items()))
    yield _compared("hypotheses", guess, [(text, label) for text, *_, label in tested])
    phrases = [text for text, _ in asked.phrases()]
    plain = np.mean([text.startswith("a") for text in phrases])
    words = np.mean([len(text.split()) for text in phrases])
    yield f"phrases: {words:.1f} words; {100 * plain:.0f}% as in captions ('a red star')"


def _blind(rows):
    """A function that guesses the label of a text from (text, label, ...) rows."""
    known = defaultdict(Counter)
    for text, label, *_ in rows:
        known[text][label] += 1
        known[""][label] += 1
    best = {text: labels.most_common(1)[0][0] for text, labels in known.items()}
    return lambda text: best.get(text, best[""])


def _compared(name, guess, rows):
    most = max(Counter(label for _, label in rows).values()) / len(rows)
    blind = np.mean([guess(text) == label for text, label in rows])
    return f"{name}: majority {100 * most:.1f}%, blind {100 * blind:.1f}%"


def contact_sheet(level: str, split: str, seed: int, rows: int = 8, columns: int = 4) -> Image:
    """The first scenes of a split with their captions, then examples of the tasks."""
    cells = [(scene["image"], scene["captions"])
             for scene in generate(level, split, seed, rows * columns)]
    side = 2 * cells[0][0].shape[0]
    cells += _example_cells(level, seed, columns)
    cell = (side + TEXT_WIDTH, side + 8)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(cells) // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, texts) in enumerate(cells):
        x, y = number % columns * cell[0], number // columns * cell[1]
        scale = side / image.shape[1]
        size = side, round(scale * image.shape[0])
        sheet.paste(Image.fromarray(image).resize(size, Image.Resampling.NEAREST), (x, y))
        lines = [line for text in texts
                 for line in textwrap.wrap(text, LETTERS, initial_indent="- ")]
        for row, line in enumerate(lines[: side // LINE_HEIGHT]):
            draw.text((x + side + 4, y + row * LINE_HEIGHT), line, fill="black")
    return sheet


def _example_cells(level, seed, columns):
    """A row of pictures uint8 [height, width, 3] with lines of text for each task."""
    tasks = Tasks(level, "heldout", seed, 64)
    images = [render(graph) for graph in tasks.graphs[: 2 * columns]]
    for image, (text, answer, _) in zip(images[:columns], tasks.questions()):
        yield image, [f"{text}?", f"= {answer}"]
    gap = np.full((images[0].shape[0], 2, 3), 255, np.uint8)
    for text, _, true, false in tasks.statements()[:columns]:
        for pair, label in ((true, "true"), (false, "false")):
            left, right = (render(tasks.graphs[i]) for i in pair)
            yield np.concatenate([left, gap, right], axis=1), [text, f"= {label}"]
    for image, (text, _, curtain, label) in zip(images, tasks.hypotheses()):
        yield draw_curtain(image, curtain, get_level(level)), [text, f"= {LABELS[label]}"]
    for image, graph, (text, target) in zip(images[:columns], tasks.graphs, tasks.phrases()):
        x0, y0, x1, y1 = graph["objects"][target]["box"]
        frame = image.copy()
        frame[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = 255
        frame[y0:y1, x0:x1] = image[y0:y1, x0:x1]
        yield frame, [text]
