"""`albef data clean`: a manifest without the pairs that teach little, and a page about these."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from albef_jax.data.clean import SCORES, Dropped, Pairs, clean_pairs
from albef_jax.data.images.pillow import BrokenImage, decode, open_image, read
from albef_jax.data.sources.json_rows import Manifests
from albef_jax.data.sources.json_source import Columns, JsonSource
from albef_jax.errors import UserError
from albef_jax.evaluators.queries import spread
from albef_jax.files import check_out, completed, write
from albef_jax.report import templates
from albef_jax.report.examples import data_uri

SHOWN = 8  # dropped pairs of each rule on the page


class Scored(NamedTuple):
    """Rows of a manifest: image and text of each pair, and its scores, nan where there is none."""

    images: list[str]
    texts: list[str]
    scores: dict[str, np.ndarray]


def clean(manifest: str, out: str, image_roots: Sequence[str] = (), thresholds=None) -> None:
    """Writes the pairs that pass all rules, prints what each rule dropped, and makes a page.

    Args:
        manifest: as of `JsonSource`; may have the columns of `albef score`. image_roots: of it.
        out: a JSON list, or with the ending .jsonl a row per line; the page is OUT.html.
        thresholds: see `data.clean.clean_pairs`.

    Raises:
        UserError: a file cannot be read or written, or nothing is left.
    """
    page = f"{os.path.splitext(out)[0]}.html"
    check_out(out)
    source = JsonSource((manifest,), image_roots, merge_images=True)
    rows = read_scored(manifest)
    places = {source.name(index): index for index in range(len(source))}
    images = [places[name] for name in rows.images]  # the example of each row
    pairs = Pairs.of(rows.images, rows.texts, sides_of(source)[images], rows.scores)
    left, dropped = clean_pairs(pairs, thresholds or {})
    print(f"{manifest}: {len(rows.images)} pairs")
    for one in dropped:
        print(f"  {len(one.rows):>9} dropped, {one.left:>9} left: "
              f"{one.rule.says.format(one.threshold)} (--{one.rule.name}={one.threshold})")
    if not len(left):
        raise UserError(f"No pair of {manifest} passes all rules; loosen the one that drops most.")
    try:
        write_rows(out, rows, left)
        write(page, render(manifest, source, images, rows, dropped, len(left)))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); give another --out, "
                        "or make room.") from None
    print(f"{len(left)} pairs in {out}; {page} shows examples of what was dropped")


def read_scored(manifest: str) -> Scored:
    """The pairs of a manifest, a text each, in order."""
    columns, images, texts, scores = Columns("", ""), [], [], {name: [] for name in SCORES}

    def parse(row):
        image, captions = columns(row)
        images.extend([image] * len(captions))
        texts.extend(captions)
        for name in SCORES:
            value = row.get(name)
            one = value if isinstance(value, float | int) else np.nan
            scores[name].extend([one] * len(captions))

    for _ in Manifests((manifest,), parse, JsonSource.row_format, keys=columns.keys):
        pass
    arrays = {name: np.array(values, float) for name, values in scores.items()}
    return Scored(images, texts, {name: array for name, array in arrays.items()
                                  if not np.all(np.isnan(array))})


def sides_of(source: JsonSource) -> np.ndarray:
    """Width and height of each image, int32 [n, 2]; 0 where it cannot be read."""
    sides = np.zeros((len(source), 2), np.int32)

    def look(index: int) -> tuple[int, int]:
        try:
            return open_image(read(lambda: source.image(index))).size
        except BrokenImage:
            return 0, 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, size in enumerate(tqdm(pool.map(look, range(len(source))), "sizes",
                                          len(source), unit="image", disable=None)):
            sides[index] = size
    return sides


def write_rows(out: str, rows: Scored, left: np.ndarray) -> None:
    """The rows that are left, as a manifest with their scores; raises OSError."""
    lines = [json.dumps({"image": rows.images[row], "caption": rows.texts[row],
                         **{name: round(float(array[row]), 6) for name, array in rows.scores.items()
                            if np.isfinite(array[row])}}, ensure_ascii=False)
             for row in left.tolist()]
    text = "\n".join(lines) if out.endswith(".jsonl") else "[" + ",\n ".join(lines) + "]"
    with completed(out) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")


def render(manifest: str, source: JsonSource, images: Sequence[int], rows: Scored,
           dropped: list[Dropped], left: int) -> str:
    """The page: what each rule dropped, with some of it, evenly spread.

    `images`: the example of each row.
    """
    def picture(row: int) -> str | None:
        try:
            return data_uri(decode(open_image(read(lambda: source.image(images[row])))))
        except BrokenImage:
            return None

    rules = [{"says": one.rule.says.format(one.threshold),
              "option": f"--{one.rule.name}={one.threshold}", "count": len(one.rows),
              "left": one.left, "examples": [
                  {"picture": picture(row), "text": rows.texts[row], "image": rows.images[row],
                   "scores": {name: array[row] for name, array in rows.scores.items()}}
                  for row in one.rows[spread(len(one.rows), SHOWN)].tolist()]}
             for one in dropped]
    return templates().get_template("clean.html").render(
        manifest=manifest, count=len(rows.images), left=left, rules=rules)
