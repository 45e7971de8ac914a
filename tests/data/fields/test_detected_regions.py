"""Regions with what a detector saw: clipped, dropped, chosen, and refused where they are wrong."""

import ast
from concurrent.futures import ThreadPoolExecutor
import io
import time

import numpy as np
import pytest

from albef_jax.data.fields.regions import DetectedRegionsField
from albef_jax.data.sources.regions import Regions, clipped, likeliest, locations
from albef_jax.data.sources.region_files import parse_features
from albef_jax.data.sources.regions_json import RegionsJsonSource
from albef_jax.errors import UserError

FOUR = Regions(
    np.arange(8.0).reshape(4, 2), np.array([[0, 0, 10, 20], [-5, 5, 5, 15], [12, 2, 20, 8],
                                            [2, 2, 4, 30.0]]),
    (10, 20), np.array([3, 0, 1, 2]), np.array([0.2, 0.9, 0.8, 0.5]))


@pytest.fixture
def field(data_config):
    data_config.update(regions_length=2, regions_width=2)
    return DetectedRegionsField(data_config, classes=4)


def load(field, *raw):
    return field.load([lambda value=value: value for value in raw], [None] * len(raw), False)


def test_the_most_confident_ones_in_their_order(field):
    """The third box is outside: it is dropped, and another takes its place."""
    arrays, problems = load(field, FOUR)
    assert problems == [None] and "regions_present" not in arrays
    np.testing.assert_array_equal(arrays["regions"][0], [[2, 3], [6, 7]])
    np.testing.assert_array_equal(arrays["regions_class"][0], [0, 2])
    np.testing.assert_allclose(arrays["regions_box"][0], [
        [0, 0.25, 0.5, 0.75, 0.25], [0.2, 0.1, 0.4, 1.0, 0.18]], rtol=1e-6)


def test_without_confidence_the_first_ones_and_without_classes_none(field):
    arrays, _ = load(field, FOUR._replace(confidences=None, classes=None))
    np.testing.assert_array_equal(arrays["regions"][0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(arrays["regions_class"][0], [-1, -1])
    np.testing.assert_array_equal(arrays["regions_box"][0, 0], [0, 0, 1, 1, 1])  # the whole image


def test_fewer_regions_are_filled_up(field):
    arrays, _ = load(field, FOUR.rows(np.array([1])))
    np.testing.assert_array_equal(arrays["regions_mask"], [[1, 0]])
    np.testing.assert_array_equal(arrays["regions_class"], [[0, -1]])
    assert not arrays["regions"][0, 1].any() and not arrays["regions_box"][0, 1].any()


@pytest.mark.parametrize("value, why", [
    (None, "no regions"),
    (FOUR.rows(np.array([2])), "no region with an area inside the image"),
    (FOUR._replace(classes=np.array([3, 0, 1, 4])), "object classes that are not below 4"),
    (FOUR._replace(features=np.ones((4, 3))), "features of shape"),
    (FOUR._replace(size=(0, 20)), "no region with an area"),
])
def test_what_cannot_be_used_is_a_problem_of_that_example(field, value, why):
    _, problems = load(field, FOUR, value)
    assert problems[0] is None and why in problems[1]


def test_a_detector_of_more_classes_is_refused(field):
    field.check_facts({"class_names": ("a", "b")}, "here")
    with pytest.raises(UserError, match="here tells 5 object classes apart; set model.classes"):
        field.check_facts({"class_names": tuple("abcde")}, "here")


def test_boxes_by_hand():
    boxes, valid = clipped([[-1, 0, 4, 5], [3, 3, 3, 9], [11, 0, 12, 5]], (10, 10))
    np.testing.assert_array_equal(boxes[0], [0, 0, 4, 5])
    np.testing.assert_array_equal(valid, [True, False, False])
    np.testing.assert_allclose(locations(boxes[0], (10, 20)), [0, 0, 0.4, 0.25, 0.1])


def test_background_is_no_class():
    classes, confidences = likeliest(np.array([[0.9, 0.02, 0.08], [0.1, 0.5, 0.4]]))
    np.testing.assert_array_equal(classes, [1, 0])
    np.testing.assert_allclose(confidences, [0.08, 0.5])


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WHOLE = dict(width=10, height=20, boxes=FOUR.boxes, feats=FOUR.features)


def test_regions_beside_a_manifest(tmp_path):
    (tmp_path / "rows.json").write_text('[{"image": "a/one.jpg", "caption": ["x", "y"]}, '
                                        '{"image": "two.jpg", "caption": "z"}]')
    (tmp_path / "regions" / "a").mkdir(parents=True)
    (tmp_path / "regions" / "a" / "one.npz").write_bytes(
        npz(**WHOLE, cls_id=FOUR.classes, cls_conf=FOUR.confidences))
    source = RegionsJsonSource([str(tmp_path / "rows.json")],
                               regions=[str(tmp_path / "regions")])
    one = source.get(0, "regions")
    for ours, theirs in zip(one, FOUR, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert source.get(0, "text") == ["x", "y"] and len(source) == 2
    with pytest.raises(FileNotFoundError, match="no file of regions has it"):
        source.get(1, "regions")


def test_files_that_are_no_regions():
    assert parse_features(npz(**WHOLE)).classes is None
    for contents in (b"", b"nothing", npz(width=3), npz(**WHOLE)[:-40],
                     npz(**WHOLE | {"feats": np.array([{"a": 1}], object)})):
        with pytest.raises(OSError, match="no file of features|no features|no boxes"):
            parse_features(contents)


def test_files_are_parsed_one_at_a_time(monkeypatch):
    """Python 3.11's parser, which numpy reads heads of arrays with, fails in several threads."""
    parse, inside, most = ast.literal_eval, 0, 0

    def watched(text):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return parse(text)

    monkeypatch.setattr(ast, "literal_eval", watched)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: parse_features(npz(**WHOLE)), range(8)))
    assert most == 1
