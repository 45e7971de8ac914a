"""The loaded model: the values of the run's own functions, every form of input, every sentence."""

import io
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

import albef_jax
from albef_jax.data.images.pillow import WHOLE, load_image
from albef_jax.data.text import SPECIAL_TOKENS, clean_caption
from albef_jax.errors import UserError
from albef_jax.evaluators.pairs import in_steps
from albef_jax.inference.features import probability
from albef_jax.models.albef import Albef
from albef_jax.tasks import make_task
from albef_jax.weights.export import export
from albef_jax.weights.foreign.torch_writer import write_torch_file
from albef_jax.weights.importer import import_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def paths(scenes):
    return sorted((scenes / "a").glob("*.png"))


@pytest.fixture
def captions(source):
    return [source.get(i, "text")[0] for i in range(len(source))]


@pytest.fixture
def expected(model, source, captions):
    """Tokens, features and match logits of all pairs by the task's functions, in one batch."""
    functions = make_task(model.config).predict_fns()
    size = model.config.model.image_size
    pixels = np.stack([load_image(source.get(i, "image"), WHOLE, size) for i in range(len(source))])
    ids, mask = model.tokenizer.encode([clean_caption(c, 30) for c in captions], 16)
    tokens, image_features = functions["encode_image"](model.params, pixels)
    states, text_features = functions["encode_text"](model.params, ids, mask)
    n = len(pixels)
    rows, columns = np.divmod(np.arange(n * n), n)
    logits = functions["match"](model.params, tokens[rows], states[columns], mask[columns])
    return (np.asarray(image_features), np.asarray(text_features),
            np.asarray(jax.nn.softmax(logits)[:, 1]).reshape(n, n))


def test_values_are_those_of_the_task(model, paths, captions, expected):
    images, texts, match = expected
    np.testing.assert_allclose(model.encode_image(paths), images, atol=2e-6)
    np.testing.assert_allclose(model.encode_text(captions), texts, atol=2e-6)
    np.testing.assert_allclose(model.match(paths, captions, all_pairs=True), match, atol=1e-5)
    np.testing.assert_allclose(model.match(paths[:6], captions[:6]), np.diag(match)[:6], atol=1e-5)
    np.testing.assert_allclose(model.match(paths[2], captions), match[2], atol=1e-5)
    np.testing.assert_allclose(model.match(paths, captions[3]), match[:, 3], atol=1e-5)


def test_features_are_unit_vectors_in_float32(model, paths, captions):
    for features in (model.encode_image(paths[:3]), model.encode_text(captions[:3])):
        assert features.dtype == np.float32 and type(features) is np.ndarray
        assert features.shape == (3, model.config.model.embed_dim)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_all_forms_of_an_image_are_the_same_image(model, source, paths):
    pixels = source.get(0, "image")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    forms = [paths[0], str(paths[0]), file.getvalue(), Image.fromarray(pixels), pixels]
    together = model.encode_image(forms)
    for form, row in zip(forms, together):
        alone = model.encode_image(form)
        assert alone.shape == (1, len(row))
        np.testing.assert_allclose(alone[0], together[0], atol=2e-6)
        np.testing.assert_allclose(row, together[0], atol=2e-6)
    np.testing.assert_allclose(model.encode_image(np.stack([pixels] * 2))[1], together[0],
                               atol=2e-6)
    grey = Image.fromarray(pixels).convert("L")
    transparent = Image.fromarray(pixels).convert("RGBA")
    np.testing.assert_array_equal(model.encode_image(grey), model.encode_image(np.asarray(grey)))
    np.testing.assert_allclose(model.encode_image(transparent)[0], together[0], atol=2e-6)


def test_two_shapes_are_compiled_whatever_the_number(workdir, paths, captions):
    model = albef_jax.load(workdir, batch_size=4)
    for n in (1, 2, 3, 4, 5, 9):
        model.encode_image(paths[:n])
        model.encode_text(captions[:n])
    forward = model.forward
    for name in ("encode_image", "encode_text"):
        assert forward.compiled(forward[name])._cache_size() == 2
    rerank, shapes = forward.compiled(in_steps(probability(forward["match"]), forward.mesh)), []
    for n in (2, 3, 4, 6, 7, 8, 10, 11, 12):
        model.match(paths[:n], captions[0])
        shapes.append(rerank._cache_size())
    assert shapes == [1] * len(shapes)


def test_a_long_text_is_cut_as_in_evaluation(model, captions):
    np.testing.assert_array_equal(
        model.encode_text(" ".join([captions[0]] + ["red"] * 40)),
        model.encode_text(" ".join([captions[0]] + ["red"] * 60)))


def test_a_text_that_is_cut_is_told_once_and_can_be_read_whole(workdir, captions, capsys):
    model = albef_jax.load(workdir, batch_size=4)
    model.encode_text(captions[0])
    assert capsys.readouterr().err == ""
    longer = " ".join(["red"] * 20)  # of 15 that are read, beside [CLS]
    cut = model.encode_text([captions[0], longer])
    said = capsys.readouterr().err
    assert "'red red" in said and "has 20 words, 21 tokens" in said and "text_length=21" in said
    model.encode_text([longer + " red"])
    assert capsys.readouterr().err == ""
    whole = albef_jax.load(workdir, batch_size=4, text_length=21)
    assert np.abs(whole.encode_text(longer) - cut[1]).max() > 1e-4
    np.testing.assert_allclose(whole.encode_text(captions[0]), cut[:1], atol=1e-6)
    assert capsys.readouterr().err == ""
    for length, words in ((33, "max_positions"), (1, "give 2 or more")):
        with pytest.raises(UserError, match=words):
            albef_jax.load(workdir, text_length=length)


def test_a_model_that_was_trained_blind_sees_what_it_is_given(workdir, model, paths, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    blind = config.read_text().replace('"blind": false', '"blind": true')
    assert blind != config.read_text()
    config.write_text(blind)
    np.testing.assert_array_equal(
        albef_jax.load(tmp_path / "run", batch_size=4).encode_image(paths[:4]),
        model.encode_image(paths[:4]))


def test_search_is_ranking_then_reranking(model, paths, captions, expected):
    image_features, text_features, match = expected
    index = model.index_images(paths)
    assert index.names == [str(path) for path in paths]
    similarity = image_features @ text_features[5]
    plain = model.search(index, text=captions[5], k=4)
    best = np.argsort(-similarity)
    assert [hit.row for hit in plain] == list(best[:4])
    assert [hit.name for hit in plain] == [str(paths[row]) for row in best[:4]]
    np.testing.assert_allclose([hit.similarity for hit in plain], similarity[best[:4]], atol=1e-5)
    assert {hit.match for hit in plain} == {None}

    reranked = model.search(index, text=captions[5], k=4, rerank=6)
    chosen = best[:6]
    assert [hit.row for hit in reranked] == list(chosen[np.argsort(-match[chosen, 5])][:4])
    for hit in reranked:
        assert hit.match == pytest.approx(match[hit.row, 5], abs=1e-5)
        assert hit.similarity == pytest.approx(similarity[hit.row], abs=1e-5)
    same = model.search(index, image=paths[7], k=1)[0]
    assert same.row == 7 and same.similarity == pytest.approx(1, abs=1e-5)


def test_search_in_texts(model, paths, captions, expected):
    match, index = expected[2], model.index_texts(captions)
    hits = model.search(index, image=paths[3], k=5, rerank=len(captions))
    assert [hit.name for hit in hits] == [captions[i] for i in np.argsort(-match[3])[:5]]
    assert model.search(index, text=captions[8], k=1)[0].row == 8


def test_momentum_and_bfloat16(workdir, model, paths, captions):
    teacher = albef_jax.load(workdir, weights="momentum", batch_size=4)
    assert np.abs(teacher.encode_image(paths) - model.encode_image(paths)).max() > 1e-5
    np.testing.assert_array_equal(teacher.params["itm_head"]["dense"]["bias"],
                                  model.params["itm_head"]["dense"]["bias"])
    half = albef_jax.load(workdir, dtype="bfloat16", batch_size=4)
    for ours, theirs in ((half.encode_image(paths), model.encode_image(paths)),
                         (half.encode_text(captions), model.encode_text(captions)),
                         (half.match(paths, captions), model.match(paths, captions))):
        assert ours.dtype == np.float32
        assert 1e-6 < np.abs(ours - theirs).max() < 0.2


def test_images_that_cannot_be_read_are_named(model, paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:60])
    for image, words in [
        (broken, ["broken.jpg", "not an image"]), (tmp_path / "gone.png", ["gone.png", "missing"]),
        (cut, ["cut.png"]), (b"", ["image 5", "empty file"]), (tmp_path, [str(tmp_path)]),
    ]:
        with pytest.raises(UserError) as error:
            model.encode_image([*paths[:5], image])
        assert all(word in str(error.value) for word in words), error.value
    problems = {}
    index = model.index_images([paths[0], broken, *paths[1:5], cut], broken=problems)
    assert set(problems) == {1, 6} and problems[1] == "not an image"
    assert index.names == [str(path) for path in paths[:5]]
    np.testing.assert_allclose(index.features, model.encode_image(paths[:5]), atol=2e-6)


@pytest.mark.parametrize("call, words", [
    (lambda m: m.encode_image([]), "list of images is empty"),
    (lambda m: m.encode_text([]), "list of texts is empty"),
    (lambda m: m.encode_text(["a", None]), "Text 1 is a NoneType"),
    (lambda m: m.encode_image(np.zeros((8, 8, 3), np.float32)), "float32[8, 8, 3]"),
    (lambda m: m.encode_image(np.zeros((8, 8, 4), np.uint8)), "uint8[8, 8, 4]"),
    (lambda m: m.encode_image([3]), "An image is a int"),
    (lambda m: m.match(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b", "c"]), "2 images and 3 texts"),
    (lambda m: m.search(m.index_texts("a")), "one query"),
    (lambda m: m.search(m.index_texts("a"), text=["a", "b"]), "2 queries"),
    (lambda m: m.search(m.index_texts("a"), text="a", rerank=2), "both texts; rank by"),
    (lambda m: m.encode_text(None), "The texts are a NoneType; give one or a list"),
    (lambda m: m.encode_image(None), "The images are a NoneType"),
    (lambda m: m.encode_image(np.zeros((0, 0, 3), np.uint8)), "has no pixels"),
    (lambda m: m.search(m.index_texts("a"), text=" \n"), "The query is blank; write what"),
    (lambda m: m.search(m.index_texts("a"), text="a", k=-1), "k=-1; ask for 1 or more"),
    (lambda m: m.index_images(np.zeros((2, 8, 8, 3), np.uint8), names=["a"]),
     "1 names of 2 images"),
])
def test_calls_that_make_no_sense(model, call, words):
    with pytest.raises(UserError) as error:
        call(model)
    assert words in str(error.value)


def test_names_of_an_index_and_files_that_are_open(model, paths):
    index = model.index_images(paths[:2], names=np.array(["a", "b"]))
    assert index.names == ["a", "b"]
    opened = io.BytesIO(paths[0].read_bytes())
    for _ in range(2):
        np.testing.assert_array_equal(model.encode_image([opened, paths[1]]), index.features)
    np.testing.assert_allclose(model.encode_image(opened), index.features[:1], atol=2e-6)
    assert model.encode_text("half an emoji \ud83d").shape == (1, index.features.shape[1])


def test_incomplete_work_directories(workdir, tmp_path):
    def fails(sentence, path=tmp_path, **options):
        with pytest.raises(UserError) as error:
            albef_jax.load(path, **options)
        assert sentence in str(error.value)

    fails("weights='teacher'", workdir, weights="teacher")
    fails("dtype='float16'", workdir, dtype="float16")
    fails("config.json does not exist")
    shutil.copy(workdir / "config.json", tmp_path)
    fails("has no folder tokenizer")
    shutil.copytree(workdir / "tokenizer", tmp_path / "tokenizer")
    fails("has no checkpoints")
    (tmp_path / "checkpoints").mkdir()
    fails("There is no checkpoint in")


def test_an_export_is_the_same_model(workdir, model, paths, captions, tmp_path):
    for weights in ("online", "momentum"):
        export(workdir, tmp_path / weights, "safetensors", weights)
    loaded = albef_jax.load(tmp_path / "online", batch_size=4)
    np.testing.assert_array_equal(loaded.encode_image(paths[:4]), model.encode_image(paths[:4]))
    np.testing.assert_array_equal(loaded.encode_text(captions[:4]), model.encode_text(captions[:4]))
    teacher = albef_jax.load(workdir, weights="momentum", batch_size=4).encode_image(paths[:4])
    for folder, weights in (("online", "momentum"), ("momentum", "online")):
        exported = albef_jax.load(tmp_path / folder, weights=weights, batch_size=4)
        np.testing.assert_array_equal(exported.encode_image(paths[:4]), teacher)
    shutil.rmtree(tmp_path / "online" / "tokenizer")
    with pytest.raises(UserError, match="has no folder tokenizer"):
        albef_jax.load(tmp_path / "online")


def test_an_imported_retrieval_model(paths, tmp_path):
    """Kinds whose task this project does not train are loaded too, if they have features."""
    with np.load(GOLDEN / "retrieval" / "state_dict.npz") as tensors:
        write_torch_file(tmp_path / "retrieval.pth", dict(tensors))
    words = [*SPECIAL_TOKENS, *(f"word{i}" for i in range(95))]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(words))
    import_file(tmp_path / "retrieval.pth", tmp_path / "run", heads=4,
                tokenizer=str(tmp_path / "words"))
    model = albef_jax.load(tmp_path / "run", batch_size=4)
    module, text = Albef(model.config.model, words=False), "word1 word7"
    pixels = np.stack([load_image(path.read_bytes(), WHOLE, 32) for path in paths[:3]])
    _, expected = module.apply({"params": model.params}, pixels, method=Albef.encode_image)
    np.testing.assert_allclose(model.encode_image(paths[:3]), expected, atol=2e-6)
    assert model.encode_text(text).shape == (1, 16)
    assert np.all((0 < model.match(paths[:3], text)) & (model.match(paths[:3], text) < 1))


def test_needs_neither_tensorflow_nor_torch(workdir, paths):
    code = ("import sys; import albef_jax; early = set(sys.modules);"
            "model = albef_jax.load(sys.argv[1], batch_size=2);"
            "model.match(sys.argv[2], 'a red circle');"
            "print(sorted({'tensorflow', 'torch', 'transformers'} & set(sys.modules)),"
            "'jax' in early)")
    done = subprocess.run([sys.executable, "-c", code, str(workdir), str(paths[0])], check=True,
                          capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[] False"
