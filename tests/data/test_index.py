"""The cached columns of large manifests, and the reader of long JSON lists."""

import codecs
import json
import multiprocessing
import re

import numpy as np
import pytest

from albef_jax.data.sources import index, json_rows, make_source
from albef_jax.data.sources.json_source import JsonSource
from albef_jax.data.sources.numbering import hashed, number
from albef_jax.errors import UserError
from albef_jax.files import cache_folder

ROWS = [{"image": f"{i % 7}.jpg", "caption": f"text {i} ü 😀 \0"} for i in range(50)]
ROWS[3] = {"image": "3.jpg", "caption": ["one", "", "three"], "more": {"nested": [1, "}],"]}}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """`cached(rows, name)` -> the block of a manifest that counts as a large one."""
    monkeypatch.setattr(index, "CACHED_FROM", 1)
    monkeypatch.setattr(json_rows, "BLOCK", 97)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(rows=ROWS, name="rows.json"):
        text = rows if isinstance(rows, str) else json.dumps(rows, indent=1)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return dict(kind="json", files=(str(tmp_path / name),))

    return write


def contents(source):
    return [(source.name(i), source.text(i), source.image_id(i)) for i in range(len(source))]


def expected():
    names = list(dict.fromkeys(row["image"] for row in ROWS))
    texts = [row["caption"] for row in ROWS]
    return [(row["image"], [t] if isinstance(t, str) else t, names.index(row["image"]))
            for row, t in zip(ROWS, texts)]


def folders():
    return [path for path in cache_folder("manifests").iterdir() if path.is_dir()]


def test_the_index_is_built_once(cached, capsys):
    first = make_source(cached())
    assert contents(first) == expected() and first.image_ids().dtype == np.int32
    assert "indexing" in capsys.readouterr().err
    again = make_source(cached() | {"files": cached()["files"]})
    assert contents(again) == expected()
    assert make_source({**cached(), "merge_images": True}).text(3)[:3] == ["one", "", "three"]


def test_it_is_found_again_and_is_that_of_a_small_manifest(cached, capsys, monkeypatch):
    block = cached()
    first = make_source(block)
    capsys.readouterr()
    again = make_source(block)
    assert capsys.readouterr().err == "" and contents(again) == expected()
    monkeypatch.setattr(index, "CACHED_FROM", 1 << 30)
    small = make_source(block)
    assert contents(small) == expected() and len(folders()) == 1
    assert first.fingerprint == again.fingerprint == small.fingerprint


@pytest.mark.parametrize("name", ["rows.arrow", "image_ids.npy", "index.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_index_is_made_anew(cached, capsys, name, damage):
    block = cached()
    make_source(block)
    path = folders()[0] / name
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + (b"" if damage == "cut" else b"!" + whole[middle + 1:]))
    assert contents(make_source(block)) == expected()
    assert "is damaged" in capsys.readouterr().err
    make_source(block)
    assert "damaged" not in capsys.readouterr().err


def test_another_manifest_has_another_index(cached):
    make_source(cached())
    assert len(make_source(cached(ROWS[:20]))) == 20 and len(folders()) == 2


def test_wrong_rows_leave_no_index(cached):
    with pytest.raises(UserError, match=r"Row 50 \(counted from 0\) of .*rows.json must be an obj"):
        make_source(cached([*ROWS, {"image": 3}]))
    assert folders() == []


def test_a_cache_that_cannot_be_written(cached, tmp_path, capsys):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert contents(make_source(cached())) == expected()
    assert "cannot be kept" in capsys.readouterr().err


def _open(block, results):
    results.put(contents(make_source(block)))


def test_processes_that_start_together(cached):
    block, context = cached(), multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(block, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [expected()] * 3
    for process in processes:
        process.join()
    assert [len(list(folder.iterdir())) for folder in folders()] == [3]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("text", [
    "[]", " [ ] ", "[1, 2.5e3,-1 ,null]", '["a]", {"b": "},{"}, [[], {}]]', "[\n{}\n,\n{}]\n\n"])
def test_rows_of_any_list(tmp_path, monkeypatch, text, size):
    monkeypatch.setattr(json_rows, "BLOCK", size)
    (tmp_path / "rows.json").write_text(text)
    seen = []
    rows = list(json_rows.read_rows(str(tmp_path / "rows.json"), seen.append, "{}"))
    assert rows == json.loads(text) and b"".join(seen).decode() == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
    text = json.dumps(["ü", "漢"], ensure_ascii=False)
    (tmp_path / "rows.json").write_bytes(text.encode(encoding))
    assert list(json_rows.read_rows(str(tmp_path / "rows.json"), len, "{}")) == ["ü", "漢"]


@pytest.mark.parametrize("size", [5, 1 << 20])
@pytest.mark.parametrize("text, reason", [
    ("", "premature EOF, after 0 rows"), ("[", "premature EOF, after 0 rows"),
    ('[{"a": 1}', "premature EOF, after 1 rows"), ('["a', "premature EOF, after 0 rows"),
    ('[{"a": 1}\n {"b": 2}]', "I expect ',' or ']' near .*, after 1 rows"),
    ("[1, 2,]", "unallowed token at this point in JSON text near .*, after 2 rows"),
    ("[1] 2", "trailing garbage.*, after 1 rows"),
    ("[1, x, 2]", "invalid char in json text near .*x.*, after 1 rows"),
    ('[1,\n 2,\n {"a": tru}]', "invalid string in json text near .*, after 2 rows")])
def test_mistakes_are_told_with_their_place(tmp_path, monkeypatch, text, reason, size):
    monkeypatch.setattr(json_rows, "BLOCK", size)
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=f"rows.json is not valid JSON: .*{reason}.$"):
        list(json_rows.read_rows(str(tmp_path / "rows.json"), len, "{}"))


@pytest.mark.parametrize("text", ['{"a": [1]}', "{1}", " 3", '"[]"', "null"])
def test_what_is_no_list(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    start = re.escape(repr(text.strip()[0]))
    with pytest.raises(UserError, match=f"must be a JSON list of rows, but begins with {start}; "):
        list(json_rows.read_rows(str(tmp_path / "rows.json"), len, "{}"))


def test_only_the_first_wrong_rows_are_listed(cached, monkeypatch):
    monkeypatch.setattr(json_rows, "LISTED", 3)
    source, problems = JsonSource.checked(files=cached([*ROWS, 1, 2, 3, 4, ROWS[0], 5])["files"])
    assert len(source) == 51 and len(problems) == 4 and "Row 52 " in problems[2]
    assert problems[3].startswith("2 more rows of ") and folders() == []


def test_numbers_are_equal_for_equal_names():
    names = ["b", "ü", "b", "\ud83d", "a", "ü"]
    numbers = number(hashed(names))
    assert numbers.tolist() == [0, 1, 0, 2, 3, 1] and numbers.dtype == np.int32
    assert number(np.array([7, -3, 7])).tolist() == [0, 1, 0] and number(hashed([])).shape == (0,)


def test_a_file_of_other_bytes(tmp_path):
    (tmp_path / "rows.json").write_bytes(b'["' + codecs.BOM_UTF16_LE + b'\xff"]')
    with pytest.raises(UserError, match="rows.json is not UTF-8"):
        list(json_rows.read_rows(str(tmp_path / "rows.json"), len, "{}"))
