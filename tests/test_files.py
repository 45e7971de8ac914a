"""Local files through the functions that know object stores too; those are in test_object_store."""

import os
from pathlib import Path
import socket
import threading

import pytest

from albef_jax.config import load_config
from albef_jax.errors import UserError, first_line
from albef_jax.files import (
    GrowingFile, absolute, aside, cache_folder, check_out, completed, local_copy, locked,
    read_bytes, uploaded, write,
)


def test_completed_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), completed(path) as unfinished:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a file"]
    with completed(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a file"]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")  # nothing yet
    for text in ("old", "new"):
        write(link, text)
        assert link.is_symlink() and (tmp_path / "there" / "file").read_text() == text
    assert os.listdir(tmp_path / "there") == ["file"]


def test_a_pipe_gets_the_whole_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        read = []
        reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
        reader.start()
        write(tmp_path / name, "text" * 100_000)
        reader.join()
        assert read == ["text" * 100_000] and (tmp_path / "pipe").is_fifo()
    assert {*os.listdir(tmp_path)} == {"pipe", "link"}


def test_devices_sockets_and_folders_are_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(os.path.relpath(tmp_path / "socket"))  # their paths are short
    for name in ("device", "socket", "folder"):
        with pytest.raises(OSError, match="device|directory"):
            write(tmp_path / name, "text")
        with pytest.raises(UserError, match="cannot be written, as it is a (device|folder)"):
            check_out(tmp_path / name)
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")
    with pytest.raises(UserError, match="as its folder does not exist; give --out"):
        check_out(tmp_path / "no" / "file")
    check_out(tmp_path / "file")


def test_completed_folder_forgets_one_that_was_interrupted(tmp_path):
    path = tmp_path / "folder"
    (tmp_path / "folder.unfinished").mkdir()
    (tmp_path / "folder.unfinished" / "left").touch()
    with completed(path) as unfinished:
        os.makedirs(unfinished)
    assert os.listdir(tmp_path) == ["folder"] and not os.listdir(path)


def test_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), aside(tmp_path / "folder") as unfinished:
        (unfinished / "part").mkdir(parents=True)
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)


def test_write_replaces_a_text(tmp_path):
    for text in ("old", "ü\n"):
        write(tmp_path / "text", text)
    assert (tmp_path / "text").read_bytes() == b"\xc3\xbc\n" and os.listdir(tmp_path) == ["text"]
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "text" / "below", "")


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("tfds") == tmp_path / "albef_jax" / "tfds"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("") == Path(tmp_path, ".cache", "albef_jax")


def test_locked_is_for_one_at_a_time_and_says_what_it_waits_for(tmp_path, capsys):
    order = []

    def second():
        with locked(tmp_path / "thing", "making the thing"):
            order.append("second")

    with locked(tmp_path / "thing", "making the thing"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(1.5)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for another process, which is making the thing" in capsys.readouterr().err


@pytest.mark.parametrize("error, said", [
    (ValueError(" one.\ntwo"), "one"), (KeyError(), "KeyError"), (OSError("x" * 999), "x" * 300),
    (UserError("Give another."), "Give another")])
def test_first_line_of_an_error(error, said):
    assert first_line(error) == said


def test_growing_file_is_on_disk_after_each_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"1\n")
    file = GrowingFile(path)
    file.write(b"2\n")
    assert path.read_bytes() == b"1\n2\n"
    file.close()
    assert path.read_bytes() == b"1\n2\n"


def test_local_paths_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_copy("bert-base-uncased") == "bert-base-uncased"
    with uploaded("out.png") as path:
        assert path == "out.png"
    assert absolute("a") == str(tmp_path / "a") and absolute("gs://b/a") == "gs://b/a"


def test_errors_say_why(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_bytes(tmp_path / "none")
    assert caught.value.strerror == "No such file or directory"
    with pytest.raises(IsADirectoryError) as caught:
        read_bytes(tmp_path)
    assert caught.value.strerror == "Is a directory"


def test_variant_of_a_config_may_be_a_path_with_colons(tmp_path):
    path = tmp_path / "c.py"
    path.write_text("from albef_jax.config import default_config\n"
                    "def get_config(variant):\n    config = default_config()\n"
                    "    config.wandb = variant or 'none'\n    return config\n")
    assert load_config(f"{path}:gs://bucket/my pairs").wandb == "gs://bucket/my pairs"
    assert load_config(path).wandb == "none"
