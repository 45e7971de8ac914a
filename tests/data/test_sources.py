"""Sources: what they return, their fingerprints, and the sentence for every mistake."""

import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from albef_jax.data.sources import make_source, resolve_source
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.errors import UserError


@pytest.fixture
def manifest(tmp_path):
    """Writes rows to a manifest and returns its source block."""

    def write(rows, name="rows.json", **options):
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (tmp_path / name).write_text(text)
        return dict(kind="json", files=(str(tmp_path / name),), **options)

    return write


ROWS = [
    {"image": "a.jpg", "caption": "one"},
    {"image": "b.jpg", "caption": ["two", "three"]},
    {"image": "a.jpg", "caption": "four"},
]


def test_json_rows(manifest, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"AAA")
    source = make_source(manifest(ROWS))
    assert len(source) == 3
    assert {field: source.get(0, field) for field in source.fields} == {
        "image": b"AAA", "text": ["one"], "image_id": 0}
    assert source.name(0) == "a.jpg"
    assert source.fields == {"image": {"views": 1}, "text": {"cleaning": "caption"},
                             "image_id": {}}
    assert [source.image_id(i) for i in range(3)] == [0, 1, 0]
    assert source.text(1) == ["two", "three"]
    with pytest.raises(FileNotFoundError):
        source.image(1)


def test_json_merges_rows_of_one_image(manifest):
    source = make_source(manifest(ROWS, merge_images=True))
    assert [source.text(i) for i in range(len(source))] == [["one", "four"], ["two", "three"]]


def test_several_manifests_and_roots_are_searched_in_order(manifest, tmp_path):
    block = manifest(ROWS[:1])
    block["files"] += manifest([{"image": "sub/c.jpg", "caption": "c"}], "more.json")["files"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.jpg").write_bytes(b"from the folder")
    for name, contents in (("a.jpg", b"from the tar"), ("c.jpg", b"C" * 700)):
        (tmp_path / name).write_bytes(contents)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "./a.jpg")
        tar.add(tmp_path / "c.jpg", "./sub/c.jpg")
    roots = (str(tmp_path / "folder"), str(tmp_path / "images.tar"))
    source = make_source({**block, "image_roots": roots})
    assert source.image(0) == b"from the folder"
    assert source.image(1) == b"C" * 700
    assert make_source({**block, "image_roots": roots[::-1]}).image(0) == b"from the tar"


def test_tar_reads_from_many_threads_and_from_a_fork(manifest, tmp_path):
    contents = {f"{i}.jpg": os.urandom(1000 + i) for i in range(50)}
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
            tar.add(tmp_path / name, name)
    rows = [{"image": name, "caption": "x"} for name in contents]
    source = make_source(manifest(rows, image_roots=str(tmp_path / "images.tar")))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.image, [*range(50)] * 5)) == list(contents.values()) * 5
    child = os.fork()
    if not child:
        os._exit(0 if source.image(7) == contents["7.jpg"] else 1)
    assert os.waitpid(child, 0)[1] == 0 and source.image(8) == contents["8.jpg"]


def test_fingerprint_follows_contents_and_options(manifest):
    prints = [
        make_source(manifest(rows, merge_images=merge)).fingerprint
        for rows, merge in ((ROWS, False), (ROWS, False), (ROWS, True), (ROWS[:2], False))
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.parametrize(
    "rows,sentence",
    [
        ("[{", "rows.json is not valid JSON"),
        ({"a": 1}, "Row 0 .*must be an object"),
        ("3", "must be a JSON list of rows, but begins with .3"),
        ([], "holds no rows"),
        ([ROWS[0], {"image": "b.jpg"}], "Row 1 .*must be an object"),
        ([ROWS[0], "b.jpg"], "Row 1 .*must be an object"),
        ([ROWS[0], ROWS[1], {"image": 3, "caption": "x"}], "Row 2 .*must be an object"),
        ([{"image": "b.jpg", "caption": ["x", None]}], "Row 0 .*must be an object"),
        ([ROWS[0], {"image": "b.jpg", "caption": []}], "Row 1 .*empty caption list"),
    ],
)
def test_wrong_manifest(manifest, rows, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make_source(manifest(rows))
    assert "\n" not in str(error.value)


def test_missing_files(manifest, tmp_path):
    with pytest.raises(UserError, match="manifest .*nowhere.json cannot be read"):
        make_source(dict(kind="json", files=(str(tmp_path / "nowhere.json"),)))
    with pytest.raises(UserError, match="image root .*nowhere does not exist"):
        make_source(manifest(ROWS, image_roots=(str(tmp_path / "nowhere"),)))


@pytest.mark.parametrize("contents", [b"", b"not a tar" * 100, b"\x1f\x8b\x08" + bytes(600)])
def test_tar_that_is_not_a_tar(manifest, tmp_path, contents):
    (tmp_path / "images.tar").write_bytes(contents)
    with pytest.raises(UserError, match="images.tar is not a readable, uncompressed tar"):
        make_source(manifest(ROWS, image_roots=(str(tmp_path / "images.tar"),)))


def test_tar_cut_short(manifest, tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(5000))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    os.truncate(tmp_path / "images.tar", 2000)
    with pytest.raises((UserError, OSError), match="images.tar"):
        make_source(manifest(ROWS, image_roots=(str(tmp_path / "images.tar"),))).image(0)


def test_unknown_kind_and_options():
    with pytest.raises(UserError, match="data source is 'parquet'; use one of json, .*:Class"):
        make_source(dict(kind="parquet"))
    with pytest.raises(UserError, match="kind of a data source is None"):
        make_source({})
    with pytest.raises(UserError, match="kind 'json' are wrong: missing .*'files'"):
        make_source(dict(kind="json"))
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        make_source(dict(kind="synthetic", size=3, colour=1))


def save(tmp_path, **arrays) -> dict:
    np.savez(tmp_path / "data.npz", **arrays)
    return dict(kind="arrays", path=str(tmp_path / "data.npz"))


IMAGES = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)


def test_arrays(tmp_path):
    source = make_source(save(tmp_path, image=IMAGES, caption=np.array(["one", "two"])))
    np.testing.assert_array_equal(source.image(1), IMAGES[1])
    assert source.text(1) == ["two"] and source.image_id(1) == 1 and len(source) == 2
    before = source.fingerprint
    several = np.array([["a", "b"], ["c", "d"]])
    source = make_source(save(tmp_path, image=IMAGES, caption=several, image_id=np.array([7, 7])))
    assert source.text(1) == ["c", "d"] and source.image_id(0) == source.image_id(1) == 7
    assert source.fingerprint != before


@pytest.mark.parametrize(
    "arrays,sentence",
    [
        (dict(image=IMAGES), "'caption' .* but is absent"),
        (dict(image=IMAGES / 255, caption=np.array(["a", "b"])), "'image' .* but is float64"),
        (dict(image=IMAGES, caption=np.array(["a"])), "same length, at least 1"),
        (dict(image=IMAGES[:0], caption=np.array([], str)), "same length, at least 1"),
        (dict(image=IMAGES, caption=np.array(["a", None])), "not an .npz file of plain arrays"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, sentence):
    with pytest.raises(UserError, match=sentence):
        make_source(save(tmp_path, **arrays))


def test_missing_and_damaged_array_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        make_source(dict(kind="arrays", path=str(tmp_path / "no.npz")))
    for contents in (b"PK\x03\x04 damaged", b"text", b""):
        (tmp_path / "bad.npz").write_bytes(contents)
        with pytest.raises(UserError, match="bad.npz"):
            make_source(dict(kind="arrays", path=str(tmp_path / "bad.npz")))


def test_options_may_be_paths():
    kind, options = resolve_source(dict(kind="json", files=[Path("a.json")], image_roots=Path("b")))
    assert kind is JsonSource and options == dict(files=("a.json",), image_roots="b")


def test_synthetic_is_a_function_of_the_index():
    source, again = (make_source(dict(kind="synthetic", size=200)) for _ in range(2))
    np.testing.assert_array_equal(source.image(5), again.image(5))
    assert source.image(5).shape == (64, 64, 3) and source.image(5).dtype == np.uint8
    assert source.text(5) == again.text(5)
    assert len({source.text(i)[0] for i in range(200)}) > 180
    with pytest.raises(UserError, match="size=0; it must be a whole number, at least 1"):
        make_source(dict(kind="synthetic", size=0))


def test_synthetic_captions_describe_the_picture():
    source = make_source(dict(kind="synthetic", size=100))
    for index in range(100):
        words = source.text(index)[0].rstrip(".").split()
        image = source.image(index).astype(int)
        before = image[:, :32] if "left" in words else image[:32]
        colours = {"red": (220, 40, 40), "white": (240, 240, 240), "blue": (50, 80, 220)}
        if words[2] in colours:  # "A small red circle is ..."
            near = np.abs(before - colours[words[2]]).max(-1) <= 12
            assert near.sum() > 20, source.text(index)
