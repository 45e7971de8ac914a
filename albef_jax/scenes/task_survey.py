"""What the tasks of a level are like: shares, what their texts give away, examples to look at."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np

from albef_jax.scenes.curtains import draw_curtain
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.hypotheses import LABELS, suppose
from albef_jax.scenes.levels import get_level
from albef_jax.scenes.phrases import kinds_of, point_out
from albef_jax.scenes.questions import ask
from albef_jax.scenes.render import render
from albef_jax.scenes.statements import Statements

STREAM = 20  # of random numbers; those of the sources are others
LEARNT = 8  # training examples of a survey per example that is asked


class Tasks:
    """Examples of all tasks on the scenes 0 .. size-1 of a split, without stored images."""

    def __init__(self, level: str, split: str, seed: int, size: int):
        self._level, self._kinds = get_level(level), kinds_of(level, split)
        self._seed, self._split = seed, split
        self.graphs = [sample_graph(self._level, split, i, seed) for i in range(size)]
        self._statements = Statements(self.graphs, self._level)

    def _rngs(self) -> Iterator[tuple[dict, np.random.Generator]]:
        for index, graph in enumerate(self.graphs):
            yield graph, scene_rng(self._seed, self._split, index, STREAM)

    def questions(self):
        return [ask(graph, self._level, self._kinds, rng) for graph, rng in self._rngs()]

    def hypotheses(self):
        return [suppose(graph, self._level, self._kinds, i % len(LABELS), rng)
                for i, (graph, rng) in enumerate(self._rngs())]

    def statements(self):
        return [self._statements.make(i, rng) for i, (_, rng) in enumerate(self._rngs())]

    def phrases(self):
        return [point_out(graph, self._level, rng) for graph, rng in self._rngs()]


def describe_tasks(level: str, seed: int, size: int) -> Iterator[str]:
    """One line per task on `size` held-out scenes: shares, and the score of a blind guess.

    The blind guess is the commonest answer to the same text in training.
    """
    train = Tasks(level, "train", seed, LEARNT * size)
    asked = Tasks(level, "heldout", seed, size)
    learnt, tested = train.questions(), asked.questions()
    guess = _blind(learnt)
    types = collections.defaultdict(list)
    for text, answer, kind in tested:
        types[kind].append(guess(text) == answer)
    yield "questions: " + ", ".join(
        f"{kind} {100 * len(right) / size:.0f}% (blind {100 * np.mean(right):.0f}%)"
        for kind, right in sorted(types.items()))
    yield _compared("questions", [answer for _, answer, _ in tested],
                    [guess(text) for text, _, _ in tested])
    statements = asked.statements()
    forms = collections.Counter(statement["which"] for _, statement, _, _ in statements)
    yield "statements, each once true and once false: " + ", ".join(
        f"{which} {100 * count / size:.0f}%" for which, count in forms.most_common())
    learnt, tested = train.hypotheses(), asked.hypotheses()
    guess = _blind([(text, label) for text, *_, label in learnt])
    hidden = collections.defaultdict(list)
    for _, _, curtain, label in tested:
        hidden[label].append(curtain is not None)
    yield "hypotheses: " + ", ".join(
        f"{LABELS[label]} {100 * len(curtains) / size:.0f}% (a curtain in "
        f"{100 * np.mean(curtains):.0f}%)" for label, curtains in sorted(hidden.items()))
    yield _compared("hypotheses", [label for *_, label in tested],
                    [guess(text) for text, *_ in tested])
    phrases = asked.phrases()
    plain = np.mean([text.startswith("a") for text, _ in phrases])
    words = np.mean([len(text.split()) for text, _ in phrases])
    yield f"phrases: {words:.1f} words; {100 * plain:.0f}% as in captions ('a red star')"


def _blind(rows):
    """A function that guesses the label of a text from (text, label, ...) rows."""
    known = collections.defaultdict(collections.Counter)
    for text, label, *_ in rows:
        known[text][label] += 1
        known[""][label] += 1
    best = {text: labels.most_common(1)[0][0] for text, labels in known.items()}
    return lambda text: best.get(text, best[""])


def _compared(name, labels, guesses) -> str:
    most = max(collections.Counter(labels).values()) / len(labels)
    blind = np.mean([label == guess for label, guess in zip(labels, guesses)])
    return f"{name}: majority {100 * most:.1f}%, blind {100 * blind:.1f}%"


def example_cells(level: str, seed: int, columns: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """A row of pictures with lines of text for each task."""
    tasks = Tasks(level, "heldout", seed, 64)
    images = [render(graph) for graph in tasks.graphs[: 4 * columns]]
    for image, (text, answer, _) in list(zip(images, tasks.questions()))[:columns]:
        yield image, [f"{text}?", f"= {answer}"]
    gap = np.full((images[0].shape[0], 2, 3), 255, np.uint8)
    for text, _, true, false in tasks.statements()[:columns]:
        for pair, label in ((true, "true"), (false, "false")):
            left, right = (render(tasks.graphs[i]) for i in pair)
            yield np.concatenate([left, gap, right], axis=1), [text, f"= {label}"]
    for image, (text, _, curtain, label) in list(zip(images, tasks.hypotheses()))[: 2 * columns]:
        yield draw_curtain(image, curtain, get_level(level)), [text, f"= {LABELS[label]}"]
    for image, graph, (text, target) in list(zip(images, tasks.graphs, tasks.phrases()))[:columns]:
        x0, y0, x1, y1 = graph["objects"][target]["box"]
        frame = image.copy()
        frame[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = 255
        frame[y0:y1, x0:x1] = image[y0:y1, x0:x1]
        yield frame, [text]
