"""Phrases and the boxes they are about, listed in JSON manifests; official files load unchanged."""

import json
import math
import os
from collections.abc import Sequence

from albef_jax.data.sources.base import pairs
from albef_jax.data.sources.manifest import ManifestSource, fields_of
from albef_jax.data.sources.pickles import plain_pickle
from albef_jax.errors import UserError
from albef_jax.files import read_bytes

TOLERANCE = 1.0  # pixels by which annotators' boxes may reach out of the image
NUMBER = (int, float)


class GroundingSource(ManifestSource):
    """Rows `{"image", "text"}`, for training without boxes; with boxes for evaluation.

    A box stands in the row as `"bbox": [x, y, width, height]`, in pixels of an image of
    `"width"` x `"height"` (both in the row too); or in the files of RefCOCO, RefCOCO+ and RefCOCOg
    as the REFER toolbox reads them, under the row's `ref_id`.

    Args:
        files, image_roots: see `ManifestSource`; `refcoco+_train.json` and the like.
        refer: folder with REFER's `refs(unc).p` and `instances.json`; '': boxes are in the rows.
        split: only rows whose reference is in this split of REFER ('val', 'testA', 'testB').
        detections: proposals, `{image id: [[x, y, width, height, ...], ...]}`, as the public
            `dets.json`; an image id is REFER's, or the row's `image_id`, or its image name. The
            public `cocos.json` holds the sizes of the images, which are in `instances.json` too.
    """

    row_format = '{"image": ..., "text": ..., "bbox": [x, y, w, h], "width": ..., "height": ...}'

    def __init__(self, files: Sequence[str], image_roots: Sequence[str] = (), refer: str = "",
                 split: str = "", detections: str = ""):
        if split and not refer:
            raise UserError(f"The data source of kind 'grounding' has split={split!r} but no "
                            "refer, where the splits are listed; give it, or leave the split out.")
        self._refer = _read_refer(refer) if refer else None
        self._split = split
        self._detections = _read_json(detections) if detections else None
        super().__init__(files, image_roots, f"grounding split={split}")

    def add(self, row) -> None:
        name, text = fields_of(row, image=str, text=str)
        if self._refer is None:
            found = _box_of_row(row) if "bbox" in row else None
        else:
            (ref_id,) = fields_of(row, ref_id=int)
            if ref_id not in self._refer:
                raise ValueError(f"has ref_id {ref_id}, which the refs of REFER do not have")
            split, *found = self._refer[ref_id]
            if self._split and split != self._split:
                return
        if self.names and (found is None) != ("box" not in self.columns):
            raise ValueError('has "bbox" unlike the rows before it, or lacks it unlike them')
        if found is None:
            self.append(name, text=[text])
            return
        box, size, detected = found
        _check_box(box, size)
        if self._detections is not None and detected not in self._detections:
            raise ValueError(f"shows the image {detected}, which the detections do not have")
        self.append(name, text=[text], box=box, size=size, detected=detected)

    def finish(self) -> None:
        boxes = {"box": {}, "size": {}} if "box" in self.columns else {}
        proposals = {"proposals": {}} if boxes and self._detections is not None else {}
        self.fields = pairs() | boxes | proposals

    def proposals(self, index: int) -> list[tuple[float, float, float, float]]:
        return [tuple(box[:4]) for box in self._detections[self.columns["detected"][index]]]


def _box_of_row(row) -> tuple[tuple, tuple, str]:
    """Box, size and image id; raises ValueError."""
    box, width, height = fields_of(row, bbox=list, width=NUMBER, height=NUMBER)
    if len(box) != 4 or not all(isinstance(value, NUMBER) for value in box):
        raise ValueError(f'must have four numbers [x, y, width, height] as "bbox", not {box}')
    return tuple(box), (width, height), str(row.get("image_id", row["image"]))


def _check_box(box: tuple, size: tuple) -> None:
    x, y, w, h = box
    if not all(map(math.isfinite, (*box, *size))):
        raise ValueError(f"has the box {list(box)}, whose numbers are not all finite")
    over = max(-x, -y, x + w - size[0], y + h - size[1])
    if min(w, h) <= 0 or over > TOLERANCE:
        raise ValueError(f"has the box {list(box)}, which is empty or reaches out of its image of "
                         f"{size[0]} x {size[1]} pixels")


def _read_refer(folder: str) -> dict[int, tuple[str, tuple, tuple, str]]:
    """ref_id -> split, box, size of the image, image id, of a folder of REFER's data."""
    instances = _read_json(os.path.join(folder, "instances.json"))
    refs = _read_refs(folder)
    try:
        boxes = {row["id"]: tuple(row["bbox"]) for row in instances["annotations"]}
        sizes = {row["id"]: (row["width"], row["height"]) for row in instances["images"]}
        return {ref["ref_id"]: (ref["split"], boxes[ref["ann_id"]], sizes[ref["image_id"]],
                                str(ref["image_id"])) for ref in refs}
    except (KeyError, TypeError) as error:
        raise UserError(f"The REFER data in {folder} is incomplete (no {error}); take refs(unc).p "
                        "and instances.json of the same data set.") from None


def _read_refs(folder: str) -> list:
    path = os.path.join(folder, "refs(unc).p")
    try:
        return plain_pickle(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"The references {path} cannot be read ({error}); give the folder of a "
                        "REFER data set, such as refcoco+.") from None


def _read_json(path: str) -> dict:
    try:
        contents = json.loads(read_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"The file {path} cannot be read as JSON: {error}.") from None
    if not isinstance(contents, dict):
        raise UserError(f"The file {path} must hold a JSON object, not {str(contents)[:60]}.")
    return contents
