"""`albef embed` and `albef search`: what they print, write and say when something is missing."""

import json
import shutil

import numpy as np
import pytest

from albef_jax.cli import main


@pytest.fixture
def albef(capsys):
    """`albef(*arguments)` -> exit code, lines of stdout, stderr."""
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.fixture(scope="module")
def embedded(workdir, scenes, tmp_path_factory):
    """The features of the manifest, written by the command."""
    path = tmp_path_factory.mktemp("embedded") / "scenes.npz"
    assert main(["embed", str(workdir), str(scenes / "pairs.json"), "--out", str(path)]) == 0
    return path


def names_of(lines):
    return [line.split("  ")[-1].strip() for line in lines]


def test_embed_a_manifest(embedded, model, scenes, source):
    with np.load(embedded) as arrays:
        assert list(arrays["image_names"]) == [f"a/{i:02d}.png" for i in range(16)]
        assert list(arrays["caption_images"]) == [i for i in range(16) for _ in range(2)]
        captions = [text for i in range(16) for text in source.get(i, "text")]
        assert list(arrays["captions"]) == captions
        paths = [scenes / name for name in arrays["image_names"]]
        np.testing.assert_allclose(arrays["image_features"], model.encode_image(paths), atol=2e-6)
        np.testing.assert_allclose(arrays["caption_features"], model.encode_text(captions),
                                   atol=2e-6)
    assert [path.name for path in embedded.parent.iterdir()] == [embedded.name]


def test_embed_a_folder_leaves_out_what_is_broken(albef, workdir, scenes, tmp_path):
    shutil.copytree(scenes / "a", tmp_path / "b" / "c")
    (tmp_path / "b" / "c" / "03.png").write_bytes(b"torn")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    out = tmp_path / "b.npz"
    code, lines, err = albef("embed", workdir, tmp_path / "b", "--out", out)
    assert code == 0 and lines == [f"15 images and 0 captions, 16 numbers each: {out}"]
    assert "1 of 16 images cannot be read and are left out: c/03.png (not an image)" in err
    with np.load(out) as arrays:
        assert list(arrays["image_names"]) == [f"c/{i:02d}.png" for i in range(16) if i != 3]
        assert np.isfinite(arrays["image_features"]).all() and len(arrays["captions"]) == 0


def test_captions_of_broken_images_are_left_out_too(albef, workdir, scenes, tmp_path):
    rows = [{"image": "gone.png", "caption": "a gone one"},
            {"image": str(scenes / "a" / "00.png"), "caption": ["one", "two"]}]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    code, lines, _ = albef("embed", workdir, tmp_path / "pairs.json", "--out", tmp_path / "f.npz")
    assert code == 0 and lines[0].startswith("1 images and 2 captions")
    with np.load(tmp_path / "f.npz") as arrays:
        assert list(arrays["captions"]) == ["one", "two"]
        assert list(arrays["caption_images"]) == [0, 0]
    (tmp_path / "pairs.json").write_text(json.dumps(rows[:1]))
    code, _, err = albef("embed", workdir, tmp_path / "pairs.json", "--out", tmp_path / "g.npz")
    assert code == 2 and "No image of" in err and "gone.png (missing)" in err
    assert not (tmp_path / "g.npz").exists()


def test_search_prints_what_the_model_finds(albef, model, workdir, scenes, embedded, source):
    text = source.get(4, "text")[0]
    paths = sorted((scenes / "a").glob("*.png"))
    index = model.index_images(paths, [path.name for path in paths])
    expected = model.search(index, text=text, k=3)
    code, lines, _ = albef("search", workdir, scenes / "a", text, "-k", 3)
    assert code == 0 and names_of(lines) == [hit.name for hit in expected]
    assert lines[0].split() == ["1", "similarity", f"{expected[0].similarity:.3f}",
                                expected[0].name]
    for data in (scenes / "pairs.json", embedded):
        assert names_of(albef("search", workdir, data, text, "-k", 3)[1]) == [
            f"a/{hit.name}" for hit in expected]


def test_search_reranks(albef, model, workdir, scenes, embedded, source):
    text = source.get(4, "text")[0]
    paths = sorted((scenes / "a").glob("*.png"))
    expected = model.search(model.index_images(paths), text=text, k=2, rerank=8)
    for data in (scenes / "a", embedded):
        code, lines, _ = albef("search", workdir, data, text, "-k", 2, "--rerank", 8)
        assert code == 0
        assert [line.split()[1:3] for line in lines] == [
            ["match", f"{hit.match:.3f}"] for hit in expected]


def test_search_with_an_image(albef, model, workdir, scenes, embedded, source):
    image = scenes / "a" / "06.png"
    captions = [text for i in range(16) for text in source.get(i, "text")]
    expected = model.search(model.index_texts(captions), image=image, k=2)
    code, lines, _ = albef("search", workdir, embedded, "--image", image, "-k", 2)
    assert code == 0 and names_of(lines) == [hit.name for hit in expected]
    code, lines, _ = albef("search", workdir, scenes / "a", "--image", image, "-k", 1)
    assert code == 0 and names_of(lines) == ["06.png"]  # no captions: images, itself first


def test_what_cannot_be_used_is_named(albef, workdir, scenes, embedded, tmp_path):
    def fails(words, *arguments):
        code, _, err = albef(*arguments)
        assert code == 2 and words in err, err

    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text.npz").write_text("no features")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    fails("holds no image", "search", workdir, empty, "a dog")
    fails("neither a folder of images nor a manifest", "search", workdir, tmp_path / "no", "a dog")
    fails("gone.npz cannot be read (No such file", "search", workdir, tmp_path / "gone.npz", "a")
    fails("not features of `albef embed`", "search", workdir, tmp_path / "text.npz", "a")
    fails("not features of `albef embed`", "search", workdir, tmp_path / "other.npz", "a")
    fails("made by another model", "search", workdir, embedded, "a", "--weights", "momentum")
    fails("needs one query", "search", workdir, embedded)
    fails("needs one query", "search", workdir, embedded, "a", "--image", scenes / "a" / "00.png")
    fails("both images; rank by", "search", workdir, scenes / "a", "--image",
          scenes / "a" / "00.png", "--rerank", 4)
    fails("'--config.k=3' is not understood", "search", workdir, embedded, "a", "--config.k=3")
    fails("weights='best'", "search", workdir, embedded, "a", "--weights", "best")
    fails("its folder does not exist", "embed", workdir, scenes, "--out", tmp_path / "no" / "a.npz")
    fails("config.json does not exist", "embed", tmp_path, scenes, "--out", tmp_path / "a.npz")


def test_images_behind_features_may_be_gone(albef, workdir, scenes, tmp_path):
    shutil.copytree(scenes / "a", tmp_path / "b")
    albef("embed", workdir, tmp_path / "b", "--out", tmp_path / "b.npz")
    for path in sorted((tmp_path / "b").iterdir())[1:]:
        path.unlink()
    assert albef("search", workdir, tmp_path / "b.npz", "a red circle")[0] == 0
    code, _, err = albef("search", workdir, tmp_path / "b.npz", "a red circle", "--rerank", 4)
    assert code == 2 and "is gone from" in err and "without --rerank" in err
