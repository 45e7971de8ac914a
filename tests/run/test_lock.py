"""Two trainings in one work directory: the second is refused, and the dead hold nothing."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

from etils import epath
import pytest

from albef_jax.errors import UserError
from albef_jax.run import lock


def write_lock(folder, **changes):
    (folder / lock.FILE).write_text(json.dumps(lock.new_lock() | changes))


def test_the_second_is_refused_and_the_next_is_not(tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    with lock.held(workdir, True):
        with pytest.raises(UserError, match=f"in use by another training, process {os.getpid()} "
                                            f"on {socket.gethostname()} since 20"):
            with lock.held(workdir, True):
                pass
        with lock.held(workdir, False):  # another process of the same run
            pass
        assert (tmp_path / lock.FILE).exists()
    assert not (tmp_path / lock.FILE).exists()
    with lock.held(workdir, True):
        pass
    assert capsys.readouterr().err == ""


def test_a_killed_process_holds_nothing(tmp_path, capsys):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_lock(tmp_path, process=child.pid, started=lock.started(child.pid))
    with pytest.raises(UserError, match=f"process {child.pid} on"):
        lock.take(epath.Path(tmp_path) / lock.FILE, lock.new_lock())
    child.kill()
    child.wait()
    with lock.held(epath.Path(tmp_path), True):
        assert f"was held by process {child.pid} on" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"started": "1"}, {"process": 2**22 + 1}])
def test_another_process_of_the_same_number_is_another(tmp_path, changes):
    write_lock(tmp_path, **changes)
    with lock.held(epath.Path(tmp_path), True):
        pass


@pytest.mark.parametrize("text", ["", "[]", '{"host": 3}'])
def test_a_damaged_lock_holds_nothing(tmp_path, text):
    (tmp_path / lock.FILE).write_text(text)
    with lock.held(epath.Path(tmp_path), True):
        pass


@pytest.mark.parametrize("lives", [True, False])
def test_another_machine_is_believed_while_it_gives_signs_of_life(
        tmp_path, monkeypatch, capsys, lives):
    monkeypatch.setattr(lock, "PATIENCE", 0.3)
    write_lock(tmp_path, host="elsewhere", beat=3)
    if lives:
        monkeypatch.setattr(lock.time, "sleep", lambda _: write_lock(
            tmp_path, host="elsewhere", beat=4))
        with pytest.raises(UserError, match="on elsewhere"):
            with lock.held(epath.Path(tmp_path), True):
                pass
    else:
        with lock.held(epath.Path(tmp_path), True):
            said = capsys.readouterr().err
            assert "waiting for a sign of life" in said and "it is taken over" in said


def test_it_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.held(epath.Path(tmp_path), True):
        end = time.monotonic() + 20
        while (lock.read(tmp_path / lock.FILE) or {"beat": 0})["beat"] < 3:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not any("_beat" in thread.name for thread in threading.enumerate())
    assert list(tmp_path.iterdir()) == []
