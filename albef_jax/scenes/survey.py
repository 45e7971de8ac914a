"""What a level is like: how far captions single out their scene, a sheet to look at."""

from __future__ import annotations

import json
import textwrap

import numpy as np
from PIL import Image, ImageDraw

from albef_jax.scenes.captions import is_true
from albef_jax.scenes.generate import generate
from albef_jax.scenes.task_survey import example_cells

TEXT_WIDTH, LINE_HEIGHT, LETTERS = 250, 12, 40  # pixels, pixels, and letters in a line


def oracle(scenes: list[dict]) -> np.ndarray:
    """Of how many of the scenes each caption is true: int [captions].

    A perfect text-to-image ranking finds the image of a caption that is true of c scenes with
    probability 1 / c.
    """
    graphs = [json.loads(scene["graph"]) for scene in scenes]
    forms = [form for scene in scenes for form in json.loads(scene["forms"])]
    return np.array([sum(is_true(form, graph) for graph in graphs) for form in forms])


def contact_sheet(level: str, split: str, seed: int, rows: int = 8, columns: int = 4) -> Image:
    """The first scenes of a split with their captions, then examples of the tasks."""
    cells = [(scene["image"], scene["captions"])
             for scene in generate(level, split, seed, rows * columns)]
    side = 2 * cells[0][0].shape[0]
    cells += example_cells(level, seed, columns)
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
