"""Manifests in every form and encoding that people have them in, and what is said of the others."""

import functools
import io
import json
import os
import tarfile
import unicodedata

import numpy as np
from PIL import Image
import pytest

from albef_jax.cli import main
from albef_jax.data.fields.image import make_engine
from albef_jax.data.images.pillow import BrokenImage, decode, load_image, open_image, WHOLE
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.text import train_tokenizer
from albef_jax.errors import UserError

ROWS = [("a.jpg", "a dog, \"big\""), ("b c.jpg", "a cat\tand a bird"), ("a.jpg", "ein Hündchen 🐶")]


def written(folder, name, contents, encoding="utf-8"):
    (folder / name).write_bytes(contents.encode(encoding))
    return str(folder / name)


def rows_of(path, **options):
    source = JsonSource([path], **options)
    return [(source.name(i), *source.text(i)) for i in range(len(source))]


def as_json(image, caption):
    return [{image: name, caption: text} for name, text in ROWS]


def as_coco(first):
    images = [{"id": i, "file_name": name} for i, (name, _) in enumerate(ROWS)]
    annotations = [{"id": 9 + i, "image_id": i, "caption": text}
                   for i, (_, text) in enumerate(ROWS)]
    return json.dumps({**first, "images": images, "annotations": annotations})


def as_csv(separator, header):
    lines = [separator.join(f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row)
             for row in ROWS]
    return "\r\n".join([*([header] if header else []), *lines]) + "\r\n"


@pytest.mark.parametrize("name, contents", [
    ("rows.jsonl", "\n".join(map(json.dumps, as_json("image", "caption")))),
    ("lines.json", "\n\n".join(map(json.dumps, as_json("image", "caption"))) + "\n"),
    ("coco.json", as_coco({})), ("info.json", as_coco({"info": {"year": 2014}, "licenses": []})),
    *((f"{image}.json", json.dumps(as_json(image, caption))) for image, caption in (
        ("file_name", "text"), ("image_id", "sentence"), ("path", "captions"))),
    ("rows.csv", as_csv(",", "image,caption")), ("semicolons.csv", as_csv(";", "path;text")),
    ("bare.csv", as_csv(",", "")),
    ("rows.tsv", "file_name\tcaption\na.jpg\ta dog, \"big\"\n"),
    ("cc3m.tsv", "a dog, \"big\"\ta.jpg\nan open \" mark\thttp://x.org/b.jpg\n")])
def test_every_form_gives_the_same_rows(tmp_path, name, contents):
    found = rows_of(written(tmp_path, name, contents))
    if name.endswith(".tsv"):
        assert found[0] == ROWS[0] and len(found) == contents.count("\n") - (name == "rows.tsv")
    else:
        assert found == ROWS


def test_what_is_understood_is_said_once(tmp_path, capsys):
    rows_of(written(tmp_path, "rows.json", json.dumps(as_json("file_name", "text"))))
    assert capsys.readouterr().err == (
        "'file_name' is taken for the image and 'text' for the caption\n")
    rows_of(written(tmp_path, "cc3m.tsv", "a dog\ta.jpg\n"))
    assert "column 2 is taken for the image, column 1 for the caption" in capsys.readouterr().err


def test_columns_are_named_by_options(tmp_path):
    rows = [{"image": "no", "caption": "no", "photo": name, "words": text} for name, text in ROWS]
    path = written(tmp_path, "rows.json", json.dumps(rows))
    assert rows_of(path, image="photo", caption="words") == ROWS
    assert rows_of(written(tmp_path, "rows.csv", as_csv(",", "photo,words")), image="photo",
                   caption="words") == ROWS
    with pytest.raises(UserError, match='must be an object with "photo" .a text. and "other"'):
        rows_of(path, image="photo", caption="other")


@pytest.mark.parametrize("name, contents, words", [
    ("x.csv", "one,two\nthree,four\n", "has no header, and no column that is plainly"),
    ("x.csv", "image,caption\na.jpg,b\na.jpg,b,c\n", "Row 1 of .*x.csv has 3 columns"),
    ("x.json", '{"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}', "file_name"),
    ("x.json", "[" * 5000 + "]" * 5000, "is nested too deeply|is not valid JSON"),
    ("x.json", '[{"image": "a", "caption": "b", "n": ' + "9" * 5000 + "}]", "is not valid JSON"),
    ("x.json", '[{"image": "a", "caption": "b"},]', "is not valid JSON.*after 1 rows"),
    ("x.json", "// mine\n[]", "must be a JSON list of rows, but begins with '/'")])
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, contents, words):
    with pytest.raises(UserError, match=words) as error:
        rows_of(written(tmp_path, name, contents))
    assert str(error.value).count("The manifest") <= 1


@pytest.mark.parametrize("encoding, text", [
    ("gb18030", "一只棕色的狗在草地上奔跑,旁边有一个红色的球。"),
    ("cp1252", "Ein Hündchen, größer als schön, überall.")])
def test_another_encoding_is_named(tmp_path, encoding, text):
    rows = json.dumps([{"image": "a.jpg", "caption": text}] * 20, ensure_ascii=False)
    with pytest.raises(UserError, match=rf"is not UTF-8; it looks like .*{encoding}.*iconv"):
        rows_of(written(tmp_path, "x.json", rows, encoding))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_half_an_emoji_is_replaced_and_counted(tmp_path, ending, capsys, monkeypatch):
    monkeypatch.setattr("albef_jax.data.sources.json_rows.BLOCK", 17)
    text = '{"image": "a.jpg", "caption": "a dog \\ud83d runs \\ude00 \\ud83d\\ude00"}'
    path = written(tmp_path, f"x.{ending}", f"[{text}]" if ending == "json" else text)
    ((_, caption),) = rows_of(path)
    assert caption.replace("?", "�") == "a dog � runs � 😀"
    assert "has 2 half characters" in capsys.readouterr().err
    tokenizer = train_tokenizer(["a dog \ud83d runs"], 60)
    assert tokenizer.pieces(["a dog \ud83d"]) == tokenizer.pieces(["a dog �"])


# ---- images ----------------------------------------------------------------------------------


def picture(name="png", mode="RGB", size=(8, 6)):
    file = io.BytesIO()
    Image.new(mode, size, 7).save(file, name)
    return file.getvalue()


def test_urls_and_paths_of_windows_are_told(tmp_path, capsys):
    rows = [{"image": name, "caption": "x"} for name in ("http://x.org/a.jpg", "images\\b.jpg")]
    assert main(["data", "check", written(tmp_path, "x.json", json.dumps(rows))]) == 2
    said = capsys.readouterr()
    assert "http://x.org/a.jpg (a url; images are not downloaded" in said.out
    assert "images\\b.jpg (missing; it looks like a path of Windows" in said.out


def test_training_does_not_start_without_any_image(tmp_path, capsys):
    rows = [{"image": f"{i}.jpg", "caption": "x"} for i in range(3)]
    assert main(["data", "check", written(tmp_path, "x.json", json.dumps(rows))]) == 2
    said = capsys.readouterr()
    assert "none of the 3 images can be read" in said.err and "would start" not in said.out


def test_links_in_a_tar_and_forms_of_unicode(tmp_path):
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, link, kind in (("d/é.png", None, None), ("hard.png", "d/é.png", tarfile.LNKTYPE),
                                 ("d/soft.png", "é.png", tarfile.SYMTYPE),
                                 ("loop.png", "loop.png", tarfile.SYMTYPE)):
            member, data = tarfile.TarInfo(name), b"" if link else picture()
            member.size = len(data)
            if link:
                member.type, member.linkname = kind, link
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / unicodedata.normalize("NFD", "ü.png")).write_bytes(picture())
    rows = [{"image": name, "caption": "x"} for name in (
        "d/é.png", "hard.png", "d/soft.png", unicodedata.normalize("NFD", "d/é.png"), "ü.png")]
    source = JsonSource([written(tmp_path, "x.json", json.dumps([*rows, {
        "image": "loop.png", "caption": "x"}]))], [str(tmp_path / "images.tar"), str(tmp_path)])
    for row in range(len(rows)):
        assert source.image(row) == picture()
    with pytest.raises(FileNotFoundError):
        source.image(len(rows))


def test_16_bits_are_8_and_floats_are_refused():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)
    for form in ("png", "tiff"):
        file = io.BytesIO()
        Image.fromarray(ramp).save(file, form)
        pixels = np.asarray(decode(open_image(file.getvalue())))
        np.testing.assert_array_equal(pixels, np.arange(256)[None, :, None] + np.zeros((4, 1, 3)))
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(file, "tiff")
    with pytest.raises(BrokenImage, match="pixels of floating point; save it with 8 or 16 bits"):
        decode(open_image(file.getvalue()))


def test_a_picture_of_too_many_pixels_is_broken():
    data = picture(size=(200, 100))
    with pytest.raises(BrokenImage, match="200 x 100 pixels, more than 19,999"):
        load_image(data, WHOLE, 8, functools.partial(open_image, max_pixels=19_999))
    opened = functools.partial(open_image, max_pixels=20_000)
    assert load_image(data, WHOLE, 8, opened).shape == (8, 8, 3)


@pytest.mark.parametrize("engine", ["pillow", "tf"])
def test_exif_orientation_is_ignored_counted_or_followed(tmp_path, engine, data_config, capsys):
    if engine == "tf":
        pytest.importorskip("tensorflow")
    pixels, exif = np.zeros((16, 16, 3), np.uint8), Image.Exif()
    pixels[:8] = 255
    exif[0x0112] = 6  # the top is at the left: turn it by 90 degrees to the right
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    path = written(tmp_path, "x.json", '[{"image": "a.jpg", "caption": "x"}]')
    shown = []
    for follow in (False, True):
        data_config.update(exif=follow, engine=engine, workers=1)
        loader = make_engine(data_config, 16)
        (image,), (problem,) = loader.load([(tmp_path / "a.jpg").read_bytes], [WHOLE])
        assert problem is None
        shown.append(image > 127)
    np.testing.assert_array_equal(shown[0], pixels > 127)
    np.testing.assert_array_equal(shown[1], np.rot90(pixels, -1) > 127)
    assert main(["data", "check", path]) == 0
    assert "images with an EXIF orientation, which data.exif=False ignores: 1 (a.jpg)" in (
        capsys.readouterr().out)


def test_folders_that_lead_back_and_files_that_are_skipped(tmp_path, capsys):
    from albef_jax.inference.collection import open_collection

    (tmp_path / "a").mkdir()
    for name in ("a/x.jfif", "a/y.AVIF", "z.png", "notes.txt", "a/more.txt", "README"):
        (tmp_path / name).write_bytes(picture())
    os.symlink(tmp_path, tmp_path / "a" / "back")
    found = open_collection(tmp_path)
    assert found.names == ["a/x.jfif", "a/y.AVIF", "z.png"]
    assert "skipped 3 files of" in capsys.readouterr().err
