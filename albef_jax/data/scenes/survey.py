"""What a level is like: how far captions single out their scene, a sheet to look at."""

from __future__ import annotations

import json
import textwrap

import numpy as np
from PIL import Image, ImageDraw

from albef_jax.data.scenes.captions import is_true
from albef_jax.data.scenes.generate import generate

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
    """The first scenes of a split with their captions."""
    scenes = list(generate(level, split, seed, rows * columns))
    side = 2 * scenes[0]["image"].shape[0]
    cell = (side + TEXT_WIDTH, side + 8)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, scene in enumerate(scenes):
        x, y = number % columns * cell[0], number // columns * cell[1]
        picture = Image.fromarray(scene["image"]).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        lines = [line for caption in scene["captions"]
                 for line in textwrap.wrap(caption, LETTERS, initial_indent="- ")]
        for row, line in enumerate(lines[: side // LINE_HEIGHT]):
            draw.text((x + side + 4, y + row * LINE_HEIGHT), line, fill="black")
    return sheet
