"""Tars of pairs, as WebDataset and img2dataset write them."""

import gzip
import io
import json
import tarfile

import pytest

from albef_jax.cli import main
from albef_jax.data.sources import index, make_source
from albef_jax.errors import UserError


def written(path, members):
    """A tar with these files, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, contents in members:
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return str(path)


def contents(source):
    return [(source.name(i).rpartition("/")[2], source.image(i), source.text(i))
            for i in range(len(source))]


@pytest.fixture
def shards(tmp_path):
    """Two tars: captions as texts, in JSON, as a list; members of a folder, and others between."""
    def row(**values):
        return json.dumps(values).encode()

    written(tmp_path / "00.tar", [
        ("a/0.jpg", b"image 0"), ("a/0.txt", b"\xef\xbb\xbfa dog\n"), ("a/0.json", row(caption="no")),
        ("a/1.cls", b"3"), ("a/1.json", row(caption=["a cat", "one cat"], alt="two")),
        ("a/1.png", b"image 1"), ("b/1.JPG", b"another 1"), ("b/1.txt", "ein Hündchen 🐶".encode())])
    written(tmp_path / "01.tar", [
        ("0.jpg", b"image 0 of 01"), ("0.json", row(text="\ud83d!", alt="four"))])
    return tmp_path


def test_pairs_of_every_form(shards):
    source = make_source(f"webdataset:{shards}/{{00..01}}.tar")
    assert contents(source) == [
        ("0.jpg", b"image 0", ["a dog"]), ("1.png", b"image 1", ["a cat", "one cat"]),
        ("1.JPG", b"another 1", ["ein Hündchen 🐶"]), ("0.jpg", b"image 0 of 01", ["\ufffd!"])]
    assert source.image_ids().tolist() == [0, 1, 2, 3]
    assert source.name(2) == f"{shards}/00.tar/b/1.JPG"
    named = make_source(f"webdataset:{shards}/*.tar")
    assert contents(named) == contents(source) and named.fingerprint == source.fingerprint


def test_a_caption_under_another_name(shards, capsys):
    source = make_source(dict(kind="webdataset", files=f"{shards}/*.tar", caption="alt"))
    assert contents(source) == [("1.png", b"image 1", ["two"]),
                                ("0.jpg", b"image 0 of 01", ["four"])]
    assert source.fingerprint != make_source(f"webdataset:{shards}/*.tar").fingerprint
    assert "2 of what is in" in (said := capsys.readouterr().err) and "no caption" in said


def test_what_is_no_pair_is_counted_and_left_out(tmp_path, capsys):
    path = written(tmp_path / "x.tar", [
        ("0.txt", b"no image"), ("1.jpg", b"no caption"), ("2.jpg", b"."), ("2.json", b"{"),
        ("3.jpg", b"."), ("3.json", b'["a list"]'), ("4.jpg", b"."), ("4.txt", b"\xff\xfe"),
        ("5.jpg", b"."), ("5.json", b'{"caption": [1]}'), ("6.jpg", b"6"), ("6.txt", b"good")])
    assert contents(make_source(f"webdataset:{path}")) == [("6.jpg", b"6", ["good"])]
    said = capsys.readouterr().err
    for words in ("1 of what is in", "no image", "2 of what is in", "no caption", "is no text",
                  "cannot be read (Expecting property name", "can't decode byte 0xff"):
        assert words in said


def test_the_index_is_kept_and_holds_the_same(shards, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = make_source(f"webdataset:{shards}/*.tar")
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    first = make_source(f"webdataset:{shards}/*.tar")
    assert "the index is" in capsys.readouterr().err
    again = make_source(f"webdataset:{shards}/*.tar")
    assert capsys.readouterr().err == ""
    assert contents(again) == contents(first) == contents(small)
    assert again.fingerprint == small.fingerprint


def test_wrong_files_are_a_sentence(shards, tmp_path):
    whole = (shards / "00.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    (tmp_path / "zipped.tar").write_bytes(gzip.compress(whole))
    written(tmp_path / "empty.tar", [])
    for name, words in (("cut.tar", "cut.tar is not a whole, uncompressed tar"),
                        ("zipped.tar", "zipped.tar is not a whole, uncompressed tar"),
                        ("gone.tar", r"gone.tar cannot be read \(No such file"),
                        ("empty.tar", "hold no pairs: members such as"),
                        ("x*.tar", "No file is named like")):
        with pytest.raises(UserError, match=words):
            make_source(f"webdataset:{tmp_path}/{name}")


def test_an_image_that_is_cut_off_is_broken(shards):
    source = make_source(f"webdataset:{shards}/01.tar")
    with open(shards / "01.tar", "r+b") as file:
        file.truncate(520)
    with pytest.raises(OSError, match="ends inside it"):
        source.image(0)


def test_data_check_takes_a_tar(tmp_path, photo_jpeg, capsys):
    path = written(tmp_path / "x.tar", [("0.jpg", photo_jpeg(40, 50)), ("0.txt", b"a photo"),
                                        ("1.jpg", b"broken"), ("1.txt", b"a photo")])
    assert main(["data", "check", path]) == 0
    said = capsys.readouterr()
    assert "2 rows, 2 images, 2 captions" in said.out and "broken images: 1" in said.out
