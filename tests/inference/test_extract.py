"""`albef features`: what the files hold, that it goes on, and what it says."""

import json
import tarfile

import numpy as np
from PIL import Image
import pytest

from albef_jax.data.media import sound_features
from albef_jax.data.sources import make_source

RNG = np.random.default_rng(0)


@pytest.fixture
def products(tmp_path):
    """A manifest of two products with images and animations; the second image is broken."""
    pixels = np.zeros((12, 24, 3), np.uint8)
    pixels[:6, 12:] = 255  # the upper right quarter
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    frames = [Image.fromarray(np.full((8, 8, 3), 51 * number, np.uint8)) for number in range(5)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    rows = [{"id": "1", "title": "one", "image": "a.png", "video": "a.webp"},
            {"id": "2", "title": "two", "image": "b.png"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


def test_pixels_as_regions_are_read_by_the_source(albef, products, tmp_path):
    code, out, _ = albef("features", "image", products, "--out", tmp_path / "f", "--grid", 2,
                         "--patch", 3)
    assert code == 0 and "1 features of image in" in out
    assert f"1 cannot be read and are left out: {tmp_path / 'b.png'} (not an image)" in out
    albef("features", "video", products, "--out", tmp_path / "v", "--patch", 2, "--frames", 2)
    source = make_source(dict(kind="products", files=str(products), regions=str(tmp_path / "f"),
                              video=str(tmp_path / "v")))
    regions, video = source.regions(0), source.video(0)
    assert regions.size == (24, 12) and regions.features.shape == (4, 27)
    np.testing.assert_array_equal(regions.boxes, [[0, 0, 12, 6], [12, 0, 24, 6], [0, 6, 12, 12],
                                                  [12, 6, 24, 12]])
    assert regions.features.mean(axis=1).argmax() == 1
    assert source.modalities(1) == ("title",)
    # Clips of frames 0 1, 2 3 and 4: grey levels 0, 51, ... in 0..1, centred and scaled.
    np.testing.assert_allclose(video, np.repeat([[-1.6], [0], [1.2]], 12, axis=1), atol=1e-6)


def test_images_of_a_tar(albef, products, tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    (tmp_path / "a.png").unlink()
    code, out, _ = albef("features", "image", products, "--out", tmp_path / "f", "--image-roots",
                         tmp_path / "images.tar")
    assert code == 0 and "1 features of image" in out and "b.png (missing)" in out


def test_it_goes_on_and_refuses_another_recipe(albef, products, tmp_path):
    arguments = ("features", "image", products, "--out", tmp_path / "f", "--grid", 2)
    albef(*arguments)
    made = (tmp_path / "f" / "1.npz").stat().st_mtime_ns
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    code, out, _ = albef(*arguments)
    assert code == 0 and "2 features of image" in out and "1 of them from before" in out
    assert (tmp_path / "f" / "1.npz").stat().st_mtime_ns == made
    code, _, err = albef(*arguments[:-1], 3)
    assert code == 2 and "holds features made with {'kind': 'image', 'patch': 16, 'grid': 2}" in err


def test_the_tokens_of_a_trained_vit(albef, workdir, model, scenes, tmp_path):
    code, out, _ = albef("features", "image", scenes / "a", "--out", tmp_path / "f", "--grid", 2,
                         "--model", workdir)
    assert code == 0 and "16 features of image" in out
    image = Image.open(scenes / "a" / "03.png")
    with np.load(tmp_path / "f" / "03.npz") as regions:
        patches = model.encode_patches([image])[0, 1:].reshape(4, 4, -1)
        np.testing.assert_allclose(regions["features"][1], patches[:2, 2:].mean((0, 1)), atol=1e-4)
        assert regions["features"].shape == (4, 32) and regions["size"].tolist() == [32, 32]
    code, _, err = albef("features", "image", scenes / "a", "--out", tmp_path / "g", "--grid", 5,
                         "--model", workdir)
    assert code == 2 and "the model has 4 patches a side" in err
    (tmp_path / "videos" / "x").mkdir(parents=True)
    for number in range(3):
        image.save(tmp_path / "videos" / "x" / f"{number}.png")
    albef("features", "video", tmp_path / "videos", "--out", tmp_path / "v", "--frames", 2,
          "--model", workdir)
    clips = np.load(tmp_path / "v" / "x.npy")
    np.testing.assert_allclose(clips, np.repeat(model.encode_patches([image])[:, 0], 2, axis=0),
                               atol=1e-4)


def test_sounds(albef, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "sounds").mkdir()
    samples = 0.1 * RNG.normal(size=(4000, 1))
    soundfile.write(tmp_path / "sounds" / "a.wav", samples, 8000, subtype="DOUBLE")
    code, out, _ = albef("features", "audio", tmp_path / "sounds", "--out", tmp_path / "f")
    assert code == 0 and "1 features of audio" in out
    np.testing.assert_allclose(np.load(tmp_path / "f" / "a.npy"), sound_features(samples, 8000),
                               atol=1e-3)


@pytest.mark.parametrize("make, sentence", [
    (lambda folder: folder, "names no image; give a folder of files"),
    (lambda folder: (folder / "a.png").write_bytes(b"x") and folder, "No image can be read: "),
    (lambda folder: folder / "nowhere.json", "cannot be read"),
])
def test_nothing_to_read(albef, tmp_path, make, sentence):
    (tmp_path / "in").mkdir()
    code, _, err = albef("features", "image", make(tmp_path / "in"), "--out", tmp_path / "f")
    assert code == 2 and sentence in err


@pytest.fixture
def photos(tmp_path):
    """A manifest of pairs whose images are halves of two colours each, and a broken one."""
    rows, colours = [], np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], np.uint8)
    (tmp_path / "deep").mkdir()
    for number in range(6):
        pixels = np.empty((16, 32, 3), np.uint8)
        pixels[:, :16], pixels[:, 16:] = colours[number % 4], colours[(number + 1) % 4]
        name = f"deep/{number}.png" if number % 2 else f"{number}.png"
        Image.fromarray(pixels).save(tmp_path / name)
        rows += [{"image": name, "caption": f"photo {number}"}] * 2
    (tmp_path / "broken.png").write_bytes(b"broken")
    rows.append({"image": "broken.png", "caption": "none"})
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    return tmp_path / "pairs.json"


def test_regions_without_a_detector(albef, photos, tmp_path):
    """Neighbours that are alike become one, classes are colours, and the source reads them."""
    arguments = ("features", "regions", photos, "--out", tmp_path / "r", "--grid", 4, "--patch", 2,
                 "--merge", 2, "--classes", 4)
    code, out, _ = albef(*arguments)
    assert code == 0 and "6 features of regions in" in out and "broken.png (not an image)" in out
    source = make_source(dict(kind="regions", files=str(photos), regions=str(tmp_path / "r"),
                              merge_images=True))
    seen = {}
    for index in range(6):
        regions = source.regions(index)
        np.testing.assert_array_equal(regions.boxes, [[0, 0, 16, 16], [16, 0, 32, 16]])
        assert regions.size == (32, 16) and regions.features.shape == (2, 12)
        for side in (0, 1):
            seen.setdefault((index + side) % 4, set()).add(int(regions.classes[side]))
    assert sorted(map(sorted, seen.values())) == [[0], [1], [2], [3]]
    # What is there stays, and so do the classes.
    (tmp_path / "r" / "deep" / "1.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")
              if path.is_file()}
    code, out, _ = albef(*arguments)
    assert code == 0 and "5 of them from before" in out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert source.regions(1).classes.tolist() == [seen[1].copy().pop(), seen[2].copy().pop()]


def test_regions_of_a_folder_and_what_cannot_be(albef, photos, tmp_path):
    (tmp_path / "broken.png").unlink()
    code, out, _ = albef("features", "regions", tmp_path, "--out", tmp_path / "r", "--grid", 2,
                         "--patch", 2, "--classes", 3)
    assert code == 0 and (tmp_path / "r" / "deep" / "1.npz").exists()
    for wrong, words in ((("--classes", 99), "only 24 regions were found; give fewer classes"),
                         (("--merge", 5), "a grid of 2 x 2 has 4 regions")):
        code, _, err = albef("features", "regions", photos, "--out", tmp_path / f"r{wrong[1]}",
                             "--grid", 2, "--patch", 2, *wrong)
        assert code == 2 and words in err
    code, _, err = albef("features", "regions", photos, "--out", tmp_path / "r", "--grid", 2,
                         "--patch", 2, "--classes", 4)
    assert code == 2 and "holds features made with" in err
