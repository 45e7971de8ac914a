"""Scenes as a source: stored once, read back, noise on reading."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from albef_jax.data.sources import make_source
from albef_jax.errors import UserError
from albef_jax.scenes import builder
from albef_jax.scenes.captions import is_true
from albef_jax.scenes.generate import VERSION, make_scene
from albef_jax.scenes.levels import DEMO

SIZE = 400


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def make(data_dir):
    def make(size=SIZE, **options):
        return make_source(dict(kind="scenes", size=size, data_dir=str(data_dir)) | options)

    return make


def folder(root, name):
    return root / "scenes" / name / f"{VERSION}.0.0"


@pytest.mark.parametrize("level, split", [("demo", "train"), ("full", "heldout")])
def test_what_is_made_is_read(make, level, split):
    source = make(30, level=level, split=split, seed=4)
    assert len(source) == 30 and len({source.image_id(i) for i in range(30)}) == 30
    for index in np.random.default_rng(0).permutation(30).tolist():
        scene = make_scene(level, split, 4, index)
        assert source.image(index).dtype == np.uint8
        np.testing.assert_array_equal(source.image(index), scene["image"])
        assert source.text(index) == scene["captions"]
        assert source.graph(index) == json.loads(scene["graph"])
        assert [source.form(index, i) for i in range(5)] == json.loads(scene["forms"])
    assert level in source.name(3) and split in source.name(3) and "3" in source.name(3)


def test_made_by_several_processes_and_read_by_several_threads(make):
    source = make()
    wrong = []

    def read(start):
        for index in range(start, SIZE, 8):
            if (source.image(index) != make_scene("demo", "train", 0, index)["image"]).any():
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_made_once(make, data_dir, capfd):
    make(12)
    files = sorted(folder(data_dir, "demo_train_12_seed0").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    capfd.readouterr()
    make(12, swapped=0.5)  # noise needs no set of its own
    assert [file.stat().st_mtime_ns for file in files] == times
    assert capfd.readouterr().err == ""
    fingerprints = {make(12, **options).fingerprint for options in
                    ({}, dict(swapped=0.5), dict(damaged=0.5), dict(split="heldout"))}
    assert len(fingerprints) == 4


def _cut_file(path):
    file = next(path.glob("*.array_record*"))
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [
    _cut_file,
    lambda path: next(path.glob("*.array_record*")).unlink(),
    lambda path: (path / "dataset_info.json").unlink(),
    lambda path: (path / "dataset_info.json").write_text("{"),
    lambda path: (path / "features.json").unlink(),
])
def test_a_damaged_set_is_made_again(tmp_path, capfd, damage):
    block = dict(kind="scenes", size=5, data_dir=str(tmp_path))
    make_source(block)
    damage(folder(tmp_path, "demo_train_5_seed0"))
    capfd.readouterr()
    again = make_source(block)
    assert "are damaged" in capfd.readouterr().err
    np.testing.assert_array_equal(again.image(4), make_scene("demo", "train", 0, 4)["image"])
    make_source(block)
    assert "Making" not in capfd.readouterr().err


def test_a_killed_preparation_is_made_again(tmp_path, monkeypatch):
    real = builder.generate

    def killed(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    block = dict(kind="scenes", size=5, data_dir=str(tmp_path))
    monkeypatch.setattr(builder, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        make_source(block)
    path = folder(tmp_path, "demo_train_5_seed0")
    assert not path.exists()
    # A process that is killed outright cannot even clean up.
    (path.parent / "incomplete.ABC_1").mkdir()
    monkeypatch.setattr(builder, "generate", real)
    np.testing.assert_array_equal(make_source(block).image(4),
                                  make_scene("demo", "train", 0, 4)["image"])
    assert [p.name for p in path.parent.iterdir() if p.is_dir()] == [path.name]


def test_two_processes_at_once_and_no_tensorflow(tmp_path):
    """One of them makes the set; neither finds TensorFlow."""
    code = f"""if True:
        import importlib.machinery
        find = importlib.machinery.PathFinder.find_spec
        importlib.machinery.PathFinder.find_spec = lambda name, *rest: (
            None if name.split(".")[0] == "tensorflow" else find(name, *rest))
        from albef_jax.data.sources import make_source
        source = make_source(dict(kind="scenes", size=300, data_dir={str(tmp_path)!r}))
        print(source.image(299).sum(), source.text(299)[0], sep="; ")
        """
    run = [subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE) for _ in range(2)]
    results = [process.communicate() for process in run]
    scene = make_scene("demo", "train", 0, 299)
    assert {out for out, _ in results} == {f"{scene['image'].sum()}; {scene['captions'][0]}\n"}
    assert sum("Making 300 demo scenes" in err for _, err in results) == 1, results


def test_noise_has_the_shares_that_are_asked_for(make):
    clean, noisy = make(), make(swapped=0.2, damaged=0.3)
    whole = {text for index in range(SIZE) for text in clean.text(index)}
    swapped = wrong = shortened = 0
    for index in range(SIZE):
        assert noisy.graph(index) == clean.graph(index)
        for number, (text, real) in enumerate(zip(noisy.text(index), clean.text(index))):
            true = is_true(noisy.form(index, number), clean.graph(index))
            if text == real:
                assert true
            elif text in whole:
                swapped += 1
            elif set(text.split()) <= set(real.split()) and true:
                shortened += 1
                assert len(text.split()) < len(real.split())
            else:
                wrong += 1
                assert not true
    total = 5 * SIZE
    assert swapped / total == pytest.approx(0.2, abs=0.03)
    assert (wrong + shortened) / total == pytest.approx(0.3, abs=0.03)
    assert wrong / shortened == pytest.approx(1, abs=0.25)
    again = make(swapped=0.2, damaged=0.3)
    assert all(again.text(index) == noisy.text(index) for index in range(50))


def test_describes_knows_more_than_pairs(make):
    source = make(200)
    true = np.array([[source.describes(owner, 0, index) for index in range(200)]
                     for owner in range(200)])
    forms, graphs = [source.form(i, 0) for i in range(200)], [source.graph(i) for i in range(200)]
    assert true.diagonal().all()
    assert true.tolist() == [[is_true(form, graph) for graph in graphs] for form in forms]
    assert 200 < true.sum() < 300


def test_the_builder_is_a_tfds_data_set(tmp_path):
    config = builder.ScenesConfig(name="few", level="demo", sizes={"train": 6, "heldout": 4})
    scenes = builder.Scenes(config=config, data_dir=tmp_path, file_format="array_record")
    scenes.download_and_prepare()
    assert {name: split.num_examples for name, split in scenes.info.splits.items()} == {
        "train": 6, "heldout": 4}
    (record,) = scenes.as_data_source("heldout[3:]")
    np.testing.assert_array_equal(record["image"], make_scene("demo", "heldout", 0, 3)["image"])
    assert {"demo", "full"} <= set(builder.Scenes.builder_configs)


def test_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_source(dict(kind="scenes", size=2))
    assert folder(tmp_path / "albef_jax" / "tfds", "demo_train_2_seed0").is_dir()


@pytest.mark.parametrize("options, message", [
    (dict(level="easy"), "level='easy'; it must be 'demo' or"),
    (dict(split="test"), "split='test'; it must be 'train'"),
    (dict(size=0), "size=0; it must be a whole number, at least 1"),
    (dict(swapped=0.7, damaged=0.4), "sum of at most 1"),
    (dict(damaged=-0.1), "damaged=-0.1; it must be a number, from 0 to 1"),
    (dict(data_dir=os.devnull), "cannot be stored in .*; name another folder with data_dir"),
    (dict(colour="red"), "options of the data source of kind 'scenes' are wrong"),
])
def test_wrong_options(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_words_for_the_masked_evaluator():
    assert len(DEMO.words) == 18 and {"red", "heart"} <= set(DEMO.words)
