"""Grounding manifests: boxes in rows or in REFER's files, proposals, and every mistake."""

import json
import pickle

import pytest

from albef_jax.data.sources import make_source
from albef_jax.data.sources.base import pairs
from albef_jax.errors import UserError

ROW = {"image": "a/1.jpg", "text": "the left dog", "ref_id": 4, "bbox": [2, 3, 10.5, 4],
       "width": 20, "height": 10}
PLAIN = {"image": "a/1.jpg", "text": "the left dog"}


class Folder:
    """Writes manifests, detections and REFER data."""

    def __init__(self, path):
        self.path = path

    def write(self, name, contents):
        (self.path / name).write_text(json.dumps(contents))
        return str(self.path / name)

    def refer(self, refs):
        (self.path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
        self.write("instances.json", {
            "images": [{"id": 77, "width": 20, "height": 10, "file_name": "x.jpg"}],
            "annotations": [{"id": 5, "image_id": 77, "bbox": [1.5, 2, 3, 4], "category_id": 1}]})
        return str(self.path)

    def source(self, *rows, **options):
        return make_source(dict(kind="grounding", files=(self.write("rows.json", rows),),
                                **options))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def ref(ref_id, split):
    return {"ref_id": ref_id, "ann_id": 5, "image_id": 77, "split": split, "sentences": []}


def test_training_rows_have_no_boxes(folder):
    source = folder.source(PLAIN, {**PLAIN, "image": "a/2.jpg", "text": "A cat."}, PLAIN)
    assert source.fields == pairs() and source.get(1, "text") == ["A cat."]
    assert [source.image_id(i) for i in range(3)] == [0, 1, 0]


def test_boxes_and_proposals_of_rows(folder):
    detections = folder.write("dets.json", {"a/1.jpg": [[0, 0, 5, 5, 0.9], [1, 1, 2, 2]], "9": []})
    source = folder.source(ROW, {**ROW, "image_id": 9}, detections=detections)
    assert source.fields == pairs() | {"box": {}, "size": {}, "proposals": {}}
    assert source.get(0, "box") == (2, 3, 10.5, 4) and source.get(0, "size") == (20, 10)
    assert source.proposals(0) == [(0, 0, 5, 5), (1, 1, 2, 2)] and source.proposals(1) == []
    assert folder.source(ROW).fields == pairs() | {"box": {}, "size": {}}


def test_official_files_load_unchanged(folder):
    rows = [{**PLAIN, "ref_id": n} for n in (0, 1, 2)]
    data = folder.refer([ref(0, "val"), ref(1, "testA"), ref(2, "val")])
    detections = folder.write("dets.json", {"77": [[0, 0, 4, 4]]})
    source = folder.source(*rows, refer=data, split="val", detections=detections)
    assert len(source) == 2 and source.get(1, "box") == (1.5, 2, 3, 4)
    assert source.get(0, "size") == (20, 10)
    assert source.proposals(0) == [(0, 0, 4, 4)]
    assert len(folder.source(*rows, refer=data)) == 3
    assert source.fingerprint != folder.source(*rows, refer=data).fingerprint


@pytest.mark.parametrize("row, sentence", [
    ({**ROW, "bbox": [15, 3, 10, 4]}, r"has the box \[15, 3, 10, 4\], which is empty or reaches"),
    ({**ROW, "bbox": [-3, 3, 10, 4]}, r"has the box \[-3, 3, 10, 4\]"),
    ({**ROW, "bbox": [1, 3, 0, 4]}, r"has the box \[1, 3, 0, 4\]"),
    ({**ROW, "bbox": [1, 3, 4]}, r"must have four numbers"),
    ({**ROW, "width": None}, 'whose "width" is'),
    (PLAIN, 'has "bbox" unlike the rows before it'),
    ({**ROW, "image": 3}, 'must be an object whose "image" is a text'),
])
def test_wrong_rows_are_named(folder, row, sentence):
    with pytest.raises(UserError, match=rf"Row 1 \(counted from 0\) of .*rows.json .*{sentence}"):
        folder.source(ROW, row)


def test_an_image_without_detections_or_reference(folder):
    detections = folder.write("dets.json", {"other.jpg": []})
    with pytest.raises(UserError, match="shows the image a/1.jpg, which the detections do not"):
        folder.source(ROW, detections=detections)
    data = folder.refer([ref(0, "val")])
    with pytest.raises(UserError, match="has ref_id 3, which the refs of REFER do not have"):
        folder.source({**PLAIN, "ref_id": 3}, refer=data)
    with pytest.raises(UserError, match="split='val' but no refer"):
        folder.source(ROW, split="val")
    with pytest.raises(UserError, match="nowhere/instances.json cannot be read"):
        folder.source(ROW, refer=str(folder.path / "nowhere"))
    data = folder.refer([{**ref(0, "val"), "ann_id": 6}])
    with pytest.raises(UserError, match="REFER data in .* is incomplete"):
        folder.source({**PLAIN, "ref_id": 0}, refer=data)


def test_references_that_would_run_code_are_refused(folder):
    data = folder.refer([Folder])  # a class, pickled by its name
    with pytest.raises(UserError, match=r"refs\(unc\).p cannot be read \(it holds a "):
        folder.source({**PLAIN, "ref_id": 0}, refer=data)
