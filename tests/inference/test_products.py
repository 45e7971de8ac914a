"""Products as people give them to a loaded model: any subset of modalities, search, sentences."""

import jax
import numpy as np
import pytest

import albef_jax
from albef_jax.cli import main
from albef_jax.config import load_config
from albef_jax.data.sources import make_source
from albef_jax.data.sources.regions import Regions
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError
from albef_jax.evaluators.products import features
from albef_jax.models.scale import withheld

PRODUCTS = [
    {"id": "mug", "title": "red mug", "table": {"colour": "red"}},
    {"id": "lamp", "title": "green lamp", "table": "colour#:#green#;#style#:#"},
    {"id": "chair", "title": "red chair", "audio": np.ones((5, 7), np.float32)}]
REGIONS = Regions(np.ones((2, 10), np.float32), np.array([[0, 0, 4, 4], [2, 2, 8, 8]]), (8, 8))


@pytest.fixture(scope="module")
def run(saved, tmp_path_factory):
    """A work directory with fresh weights of the tiny SCALE, whose words are those of products."""
    words = train_tokenizer(["red mug", "green lamp", "red chair", "colour style"], 100)
    config = load_config("tests/tiny_scale.py").unlock()
    config.model.update(vocab_size=words.vocab_size, pad_id=words.pad_id, cls_id=words.cls_id,
                        mask_id=words.mask_id)
    folder = tmp_path_factory.mktemp("scale") / "run"
    saved(config, folder)
    words.save(str(folder / "tokenizer"))
    return folder


@pytest.fixture(scope="module")
def model(run):
    return albef_jax.load(run, batch_size=2)


@pytest.mark.slow
def test_features_are_those_of_the_task_with_the_rest_withheld(model):
    given = [{**product, "image": REGIONS} for product in PRODUCTS]
    arrays = {}
    for name, values in {
            "title": [[product["title"]] for product in PRODUCTS], "regions": [REGIONS] * 3,
            "table": [[("colour", "red")], [("colour", "green"), ("style", "")], None],
            "video": [None] * 3, "audio": [None, None, PRODUCTS[2]["audio"]]}.items():
        arrays |= model._load(name, values)
    for seen in ("tipva", "t", "ia"):
        expected = features(jax.device_get(model.forward["encode"](
            model.params, **withheld(arrays, seen))), seen)
        np.testing.assert_allclose(model.encode(given, seen), expected, atol=1e-5)
    assert model.encode(given).shape == (3, 16)
    np.testing.assert_allclose(model.encode(given[1], "tp"), model.encode(given, "tp")[1:2],
                               atol=1e-5)
    # What is withheld does not matter.
    np.testing.assert_allclose(model.encode(given, "tp"), model.encode(PRODUCTS, "tp"), atol=1e-5)


def test_products_are_found(model):
    index = model.index_products(PRODUCTS, modalities="tp")
    assert index.names == ["mug", "lamp", "chair"]
    np.testing.assert_allclose(np.linalg.norm(index.features, axis=1), 1, atol=1e-5)
    best, *others = model.search(index, PRODUCTS[1], "tp", k=3)
    assert best.name == "lamp" and best.row == 1 and best.similarity == pytest.approx(1, abs=1e-5)
    assert [hit.name for hit in model.search(index, 1)] == [hit.name for hit in others]
    assert len(model.search(index, {"title": "red"}, "t", k=2)) == 2


def test_files_of_features_and_sources(model, tmp_path):
    np.save(tmp_path / "a.npy", PRODUCTS[2]["audio"])
    np.savez(tmp_path / "i.npz", features=REGIONS.features, boxes=REGIONS.boxes, size=(8, 8))
    files = {"title": "red chair", "audio": str(tmp_path / "a.npy"),
             "image": str(tmp_path / "i.npz")}
    held = {**PRODUCTS[2], "image": REGIONS}
    np.testing.assert_allclose(model.encode(files), model.encode(held), atol=1e-5)
    (tmp_path / "p.jsonl").write_text('{"id": "mug", "title": "red mug", "pv": "colour#:#red"}\n'
                                      '{"id": "lamp", "title": "green lamp"}\n')
    source = make_source(f"products:{tmp_path / 'p.jsonl'}")
    index = model.index_products(source)
    assert index.names == ["mug", "lamp"]
    np.testing.assert_allclose(model.encode(source)[:1], model.encode(PRODUCTS[0]), atol=1e-5)


def test_the_command(run, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"id": "mug", "title": "red mug"}\n'
                                      '{"id": "lamp", "title": "green lamp"}\n')
    data = f"products:{tmp_path / 'p.jsonl'}"
    assert main(["search", str(run), data, "red mug", "--modalities", "t"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "similarity  1.000  mug" in first and second.endswith("lamp")
    assert main(["search", str(run), data, "--product", "lamp"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("mug")
    for query, sentence in ((["--product", "cup"], "has no product 'cup'; give one of its 2 ids"),
                            ([], "give a title, or --product ID"),
                            (["red", "--modalities", "x"], "some of the letters that the model")):
        assert main(["search", str(run), data, *query]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("product, sentence", [
    ([], "The list of products is empty"),
    (["red mug"], "Product 0 is a str; give a dict with some of title, table, image"),
    ([{"id": "a", "titel": "red"}], "has no modality but id, titel; give it some of title"),
    ([{"table": 5}], "A product cannot be used: it is a int"),
    ([{"image": "photo.jpg"}], "photo.jpg as its image, which holds no features; make"),
    ([{"audio": "gone.npy"}], r"The audio 0 cannot be read \("),
    ([{"video": np.full((3, 6), np.nan, np.float32)}], "The video 0 cannot be read"),
    ([{"video": np.ones((3, 5), np.float32)}], "The video 0 cannot be read")])
def test_products_that_cannot_be_read(model, product, sentence):
    with pytest.raises(UserError, match=sentence):
        model.encode(product)
