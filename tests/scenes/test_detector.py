"""The simulated detector: what it finds is there, and its errors are as often as they should be."""

import numpy as np
import pytest

from albef_jax.data.sources import make_source
from albef_jax.scenes import detector
from albef_jax.scenes.graph import sample_graph, scene_rng
from albef_jax.scenes.levels import LEVELS
from albef_jax.scenes.proposals import iou

SCENES = 200


def detections(level, **options):
    """Graphs and what is found in them."""
    graphs = [sample_graph(level, "train", index) for index in range(SCENES)]
    return [(graph, detector.detect(graph, level, scene_rng(0, "train", index, 1), 24, **options))
            for index, graph in enumerate(graphs)]


def shown(box, graph):
    """The object that a box shows best, and how well."""
    overlaps = [iou(box, item["box"]) for item in graph["objects"]]
    return int(np.argmax(overlaps)), max(overlaps)


@pytest.mark.parametrize("level", LEVELS.values(), ids=list(LEVELS))
def test_without_errors_every_object_is_found_and_told(level):
    kinds = np.stack([detector.code_of(dict(zip(level.values, kind)), level) for kind in (
        (colour, shape, size, texture) for colour in level.colours for shape in level.shapes
        for size in level.sizes for texture in level.textures)])
    names = [(colour, shape) for colour in level.colours for shape in level.shapes
             for _ in level.sizes for _ in level.textures]
    for graph, found in detections(level, missed=0.0, confused=0.0)[:40]:
        confidences = [one.confidence for one in found]
        assert len(found) == 24 and confidences == sorted(confidences, reverse=True)
        good = [one for one in found if one.confidence >= detector.SURE[0]]
        seen = set()
        for one in good:
            target, overlap = shown(one.box, graph)
            item = graph["objects"][target]
            assert overlap > 0.5 and level.shapes[one.shape] == item["shape"]
            nearest = names[np.argmin(np.linalg.norm(kinds - one.feature, axis=1))]
            seen.add(target)
            assert nearest == (item["colour"], item["shape"])
        assert seen == set(range(len(graph["objects"])))
        for one in found:
            assert 0 <= one.box[0] < one.box[2] <= graph["side"]
            assert 0 <= one.box[1] < one.box[3] <= graph["side"]


def test_errors_are_as_often_as_they_should_be():
    level, missed, confused = LEVELS["demo"], 0, []
    for graph, found in detections(level, missed=0.2, confused=0.3):
        sure = [one for one in found if one.confidence > detector.UNSURE[1]]
        hit = {shown(one.box, graph)[0] for one in sure}
        missed += len(graph["objects"]) - len(hit)
        confused += [level.shapes[one.shape] != graph["objects"][shown(one.box, graph)[0]]["shape"]
                     for one in sure]
    objects = sum(len(graph["objects"]) for graph, _ in detections(level))
    assert 0.15 < missed / objects < 0.3  # a few are only found with little confidence
    assert 0.2 < np.mean(confused) < 0.4


def test_the_source_gives_them_as_regions():
    block = dict(kind="scenes_regions", level="demo", split="heldout", size=8)
    source, again = make_source(block), make_source(block)
    assert source.fields["regions"] == {"width": detector.WIDTH,
                                        "class_names": LEVELS["demo"].shapes}
    for index in range(8):
        regions = source.regions(index)
        assert regions.features.shape == (10, detector.WIDTH) and regions.size == (96, 96)
        np.testing.assert_array_equal(regions.features, again.regions(index).features)
        assert regions.best(4).confidences.min() >= np.sort(regions.confidences)[-4]
    other = make_source({**block, "missed": 0.5})
    assert other.fingerprint != source.fingerprint and other.text(3) == source.text(3)
