"""`albef score`: how well each text of a manifest fits its image, by a trained model."""

import functools
import itertools
import json
import os
import shutil
import sys

import numpy as np
from tqdm import tqdm

from albef_jax.data.sources import make_source, source_block
from albef_jax.data.sources.base import Source
from albef_jax.errors import UserError, listed
from albef_jax.files import check_out, completed, is_remote
from albef_jax.inference.api import load
from albef_jax.inference.commands import fingerprint
from albef_jax.inference.features import FeatureModel
from albef_jax.inference.inputs import StoredImage
from albef_jax.inference.model import NotOffered
from albef_jax.inference.regions import RegionModel
from albef_jax.parallel.mesh import use_compile_cache

COLUMNS = {"itc": "cosine of the features of image and text, -1 to 1",
           "itm": "probability that they match, by the matching head"}
PART = ".part"  # beside the output
MAX_NAMED = 10


def score(workdir, source, out, image_root=None, regions=(), **options):
    """Writes a row for each pair of an image and a text, with `COLUMNS`; goes on where it stopped.

    A row is a line of JSON, `{"image": ..., "caption": ..., "itc": ..., "itm": ...}`, which is a
    manifest too; the texts of an image follow each other. Models that read regions have no itc. A
    pair whose image cannot be read has no scores.

    Args:
      workdir, options: see `load`. source, regions: see `data.sources.source_block`; a model that
        reads regions wants some. image_root: see `open_collection`. out: a file on this machine.

    Returns:
      A sentence about what was written.

    Raises:
      UserError: the model scores no pairs, the source has none, or the file cannot be written.
    """
    use_compile_cache()
    check_out(out)
    if is_remote(out):
        raise UserError(f"{out} is on an object store, where a file cannot grow; give a local "
                        "--out, and copy it.")
    # Merged, so that an image with several texts is encoded once.
    pairs = make_source(source_block(source, (image_root,) if image_root else (), regions, True))
    model = load(workdir, **options)
    if not isinstance(model, (FeatureModel, RegionModel)):
        raise NotOffered(f"A model of the task {model.config.task!r} scores no pairs; give one "
                         "that was pre-trained or fine-tuned for retrieval.")
    field = "image" if isinstance(model, FeatureModel) else "regions"
    if not {field, "text"} <= {*pairs.fields}:
        raise UserError(f"The model compares {field} and text, but the data has "
                        f"{', '.join(pairs.fields)}.")
    head = {"model": fingerprint(model.params), "data": pairs.fingerprint}
    try:
        scored, broken = _write_rows(f"{out}{PART}", head, model, pairs, field)
        with open(f"{out}{PART}", "rb") as file, completed(out) as whole:
            file.readline()  # the head
            with open(whole, "wb") as rows:
                shutil.copyfileobj(file, rows)
        os.remove(f"{out}{PART}")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); mend the cause, and "
                        "run the same command again: it goes on.") from None
    told = f"{scored} pairs in {out}"
    if broken:
        told += (f"; {len(broken)} images cannot be read, and their pairs have no scores: "
                 f"{listed((f'{name} ({why})' for name, why in broken.items()), MAX_NAMED)}")
    return told


def _write_rows(path, head, model, pairs: Source, field: str) -> tuple[int, dict[str, str]]:
    """Appends the rows that are not there; how many there are, and what of the images that were
    looked at cannot be read."""
    texts = [pairs.get(index, "text") for index in range(len(pairs))]
    with open(path, "a+b") as file:
        first = _first_missing(file, head, list(map(len, texts)), path)
        broken: dict[str, str] = {}
        for start in tqdm(range(first, len(pairs), model.batch_size), "score", unit="batch",
                          disable=None):
            rows = range(start, min(start + model.batch_size, len(pairs)))
            images = [StoredImage(pairs, row) if field == "image"
                      else functools.partial(pairs.get, row, field) for row in rows]
            image_m = np.repeat(np.arange(len(rows)), [len(texts[row]) for row in rows])
            wrong: dict[int, str] = {}
            scores = model.pair_scores(images, [*itertools.chain(*(texts[row] for row in rows))],
                                       image_m, wrong)
            broken |= {pairs.name(rows[number]): why for number, why in wrong.items()}
            lines = []
            for number, (place, text) in enumerate(zip(
                    image_m, itertools.chain(*(texts[row] for row in rows)))):
                values = {} if place in wrong else {
                    name: round(float(column[number]), 6) for name, column in scores.items()}
                lines.append(json.dumps({"image": pairs.name(rows[place]), "caption": text,
                                         **values}, ensure_ascii=False))
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
    return sum(map(len, texts)), broken


def _first_missing(file, head: dict, counts: list[int], path: str) -> int:
    """The first example whose rows are not all in a file, which is cut off behind those before it.

    Raises:
      UserError: the rows are of another model or of other data.
    """
    file.seek(0)
    start = file.readline()
    if not start.endswith(b"\n"):
        file.truncate(0)
        file.write(f"{json.dumps(head)}\n".encode())
        return 0
    if json.loads(start) != head:
        raise UserError(f"{path} holds scores by another model or of other data; delete it, or "
                        "give another --out.")
    for index, count in enumerate(counts):
        place = file.tell()
        if not all(file.readline().endswith(b"\n") for _ in range(count)):
            file.truncate(place)
            if index:
                print(f"{path}: {index} of {len(counts)} images are there and stay",
                      file=sys.stderr)
            return index
    return len(counts)
