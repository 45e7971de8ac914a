"""TFDS data sets: a tiny builder, prepared as ArrayRecord and as TFRecord, read and mistaken."""

import importlib.util
import io
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from albef_jax.data.sources import make_source, parse_source
from albef_jax.errors import UserError

HAS_TF = importlib.util.find_spec("tensorflow") is not None
needs_tf = pytest.mark.skipif(not HAS_TF, reason="only TensorFlow writes and reads TFRecord")
F = tfds.features


class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Like coco_captions: nested captions, and a text that is none."""

    name = "pairs"
    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {
        "image": F.Image(encoding_format="png"),
        "image/filename": F.Text(),
        "captions": F.Sequence({"text": F.Text(), "id": np.int64}),
    }

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(self.FEATURES))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(9), "val": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, self.example(i)

    def example(self, i):
        captions = [{"text": f"grey {i}", "id": 0}, {"text": "gräulich", "id": 1}][: i % 3]
        return {"image": pixels(i), "image/filename": f"{i}.png", "captions": captions}


class TwoOfEach(Pairs, skip_registration=True):
    name = "two_of_each"
    FEATURES = {
        "left": F.Image(encoding_format="png"),
        "more": {"right": F.Image(encoding_format="png"), "title": F.Text()},
        "sentences": F.Sequence(F.Text()),
        "frames": F.Sequence(F.Image(encoding_format="png")),
    }

    def example(self, i):
        more = {"right": pixels(100 + i), "title": f"title {i}"}
        return {"left": pixels(i), "more": more, "sentences": ["a", "b"], "frames": []}


class NoText(Pairs, skip_registration=True):
    name = "no_text"
    FEATURES = {"image": F.Image(encoding_format="png")}

    def example(self, i):
        return {"image": pixels(i)}


def pixels(grey: int) -> np.ndarray:
    return np.full((6, 7, 3), grey, np.uint8)


def prepare(folder: Path, builder=Pairs, file_format="array_record") -> str:
    builder(data_dir=folder, file_format=file_format).download_and_prepare()
    return str(folder)


@pytest.fixture(scope="module")
def array_record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("array_record")
    for builder in (Pairs, TwoOfEach, NoText):
        prepare(folder, builder)
    return str(folder)


@pytest.fixture(scope="module")
def prepared_tfrecord(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfrecord"), file_format="tfrecord")


@pytest.fixture
def tfrecord(prepared_tfrecord, tmp_path):
    return str(shutil.copytree(prepared_tfrecord, tmp_path / "data"))


def block(data_dir, name="pairs", **options) -> dict:
    return dict(kind="tfds", name=name, data_dir=data_dir, **options)


def contents(source) -> list:
    return sorted((number(source.image(i)), source.text(i)) for i in range(len(source)))


def number(data: bytes) -> int:
    image = np.asarray(Image.open(io.BytesIO(data)))
    assert image.shape == (6, 7, 3)
    return int(image[0, 0, 0])


CAPTIONS = [[""], ["grey {}"], ["grey {}", "gräulich"]]
EXPECTED = [(i, [text.format(i) for text in CAPTIONS[i % 3]]) for i in range(9)]


def test_all_examples_with_their_captions(array_record):
    source = make_source(block(array_record))
    assert contents(source) == EXPECTED
    assert contents(make_source(block(array_record, split="val"))) == EXPECTED[:3]
    assert len(make_source(block(array_record, split="train[:50%]+val"))) == 7
    assert [source.image_id(i) for i in range(9)] == list(range(9))
    assert source.name(4) == "pairs[train][4]"


def test_captions_do_not_need_the_image_first(array_record):
    one, other = (make_source(block(array_record)) for _ in range(2))
    captions = [one.text(i) for i in range(9)]
    images = [other.image(i) for i in range(9)]
    assert [other.text(i) for i in range(9)] == captions
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one.image, [*range(9)] * 20)) == images * 20


def test_features_by_name(array_record):
    options = dict(name="two_of_each", image="more/right", text="more/title")
    source = make_source(block(array_record, **options))
    assert contents(source) == [(100 + i, [f"title {i}"]) for i in range(9)]
    options = dict(name="two_of_each", image="left", text="sentences")
    assert contents(make_source(block(array_record, **options)))[1] == (1, ["a", "b"])
    files = make_source(block(array_record, text="image/filename"))
    assert (0, ["0.png"]) in contents(files)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="two_of_each"), ["2 image features, left, more/right", "image='...'"]),
        (
            dict(name="two_of_each", image="left"),
            ["2 text features, more/title, sentences", "text='...'"],
        ),
        (dict(image="picture"), ["no image feature 'picture'", "it has image."]),
        (dict(text="caption"), ["text feature 'caption'", "it has captions/text, image/filename."]),
        (dict(name="no_text"), ["no text features; use another set"]),
        (dict(split="test"), ["'test'", "its splits are train, val"]),
        (dict(split="train[:0]"), ["'train[:0]' of", "is empty"]),
        (dict(name="pears"), ["No TFDS data set 'pears'", "TFDS knows no such name"]),
        (dict(name="pairs:3.0.0"), ["'pairs:3.0.0'"]),
        (dict(name="coco_caption"), ["it knows coco_captions"]),
        (dict(name="coco_captions"), ["not in", "download_and_prepare()", "array_record"]),
        (dict(name="-"), ["cannot be opened", "name/config:1.0.0"]),
    ],
)
def test_mistakes(array_record, options, words):
    with pytest.raises(UserError) as error:
        make_source(block(array_record, **options))
    text = str(error.value)
    assert all(word in text for word in words) and "\n" not in text, text


def test_fingerprint_follows_data_and_options(array_record):
    blocks = [block(array_record), block(array_record, split="val")]
    blocks += [block(array_record, text="image/filename"), block(array_record, image="image")]
    prints = [make_source(one).fingerprint for one in blocks]
    assert prints[0] == prints[3] and len(set(prints)) == 3


def test_short_form():
    assert parse_source("tfds:coco_captions") == dict(
        kind="tfds", name="coco_captions", split="train"
    )
    for text, name, split in (
        ("tfds:a/b:val", "a/b", "val"),
        ("tfds:a:1.0.0", "a:1.0.0", "train"),
        ("tfds:a/b:1.*.*:train[:90%]", "a/b:1.*.*", "train[:90%]"),
    ):
        assert parse_source(text) == dict(kind="tfds", name=name, split=split)
    with pytest.raises(UserError, match="write tfds:NAME or tfds:NAME:SPLIT"):
        parse_source("tfds:")


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "gone"])
def test_damaged_array_record(array_record, tmp_path, damage):
    """An image is an OSError, which training counts; captions are needed, so a sentence."""
    (shard,) = shutil.copytree(array_record, tmp_path / "data").glob("pairs/*/pairs-train*")
    whole = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        changed = whole[:65600] + bytes(200) + whole[65800:]
        cut = whole[: len(whole) // 2]
        shard.write_bytes(dict(cut=cut, changed=changed, empty=b"")[damage])
    source = make_source(block(str(tmp_path / "data")))
    with pytest.raises(OSError):
        source.image(3)
    with pytest.raises(UserError, match=r"pairs\[train\]\[3\] is damaged .*prepare"):
        source.text(3)


@needs_tf
def test_tfrecord_is_converted_once(tfrecord, capsys):
    original = Path(tfrecord) / "pairs" / "1.0.0"
    before = {path.name: path.read_bytes() for path in original.iterdir()}
    source = make_source(block(tfrecord))
    assert "converting" in capsys.readouterr().err
    assert contents(source) == EXPECTED
    assert {path.name: path.read_bytes() for path in original.iterdir()} == before
    again = make_source(block(tfrecord, split="val"))
    assert "converting" not in capsys.readouterr().err
    assert contents(again) == EXPECTED[:3]
    assert {path.name for path in original.parent.iterdir()} == {
        "1.0.0", "1.0.0.array_record", "1.0.0.array_record.lock"}


@needs_tf
def test_conversion_keeps_the_fingerprint(tfrecord, array_record):
    assert make_source(block(tfrecord)).fingerprint == make_source(block(array_record)).fingerprint


@needs_tf
def test_damaged_tfrecord_leaves_nothing_behind(tfrecord):
    original = Path(tfrecord) / "pairs" / "1.0.0"
    (shard,) = original.glob("pairs-train*")
    whole = shard.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"?" + whole[101:], b""):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match="pairs-train.* cannot be converted"):
            make_source(block(tfrecord))
    assert {path.name for path in original.parent.iterdir()} == {
        "1.0.0", "1.0.0.array_record.lock"}


@needs_tf
def test_copy_of_other_data_is_refused(tfrecord):
    make_source(block(tfrecord))
    info = Path(tfrecord) / "pairs" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"9"', '"8"'))
    with pytest.raises(UserError, match="copy of other data .*delete it"):
        make_source(block(tfrecord))


@needs_tf
def test_folder_that_cannot_be_written(tfrecord, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("albef_jax.data.sources.tfds_convert._write", full)
    with pytest.raises(UserError, match="No space left on device.*free some space"):
        make_source(block(tfrecord))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_without_tensorflow(file_format, array_record, prepared_tfrecord):
    """ArrayRecord is read as ever; TFRecord gets a sentence."""
    data_dir = array_record if file_format == "array_record" else prepared_tfrecord
    script = """
        import importlib.machinery, sys
        find = importlib.machinery.PathFinder.find_spec
        def find_spec(name, *rest):
            return None if name.split(".")[0] == "tensorflow" else find(name, *rest)
        importlib.machinery.PathFinder.find_spec = find_spec
        from albef_jax.data.sources import make_source
        from albef_jax.errors import UserError
        try:
            source = make_source(dict(kind="tfds", name="pairs", data_dir=sys.argv[1]))
            print(sorted(source.text(i)[-1] for i in range(9))[0], len(source.image(0)) > 0)
        except UserError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), data_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = " True" if file_format == "array_record" else "install tensorflow-cpu"
    assert wanted in done.stdout
