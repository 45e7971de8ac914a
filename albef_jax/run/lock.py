"""One training in a work directory: a file that says which process it is, and that it lives."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid

from albef_jax.errors import UserError
from albef_jax.files import is_remote, read_bytes, write

FILE = "lock.json"
BEAT = 10  # seconds between two signs of life
PATIENCE = 3 * BEAT  # seconds after which a process of another machine counts as dead


@contextlib.contextmanager
def held(workdir, is_writer):
    """Holds a work directory, of several processes by the one that writes.

    The lock of a process that is gone is taken over: on this machine at once, of another machine
    when it has given no sign of life for `PATIENCE` seconds.

    Raises:
      UserError: another training holds it.
    """
    if not is_writer:
        yield
        return
    path, lock, ended = workdir / FILE, new_lock(), threading.Event()
    take(path, lock)
    beats = threading.Thread(target=_beat, args=(path, lock, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        if (read(path) or {}).get("id") == lock["id"]:
            path.unlink(missing_ok=True)


def new_lock():
    """Who this process is, as the lock says it."""
    return {"host": socket.gethostname(), "process": os.getpid(), "started": started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"), "id": uuid.uuid4().hex, "beat": 0}


def take(path, lock):
    """Writes a lock where there is none, or one of a process that is gone; raises UserError."""
    while True:
        if is_remote(path):  # object stores cannot tell who came first
            there = read(path)
            if there is None:
                write(path, json.dumps(lock))
                return
        else:
            with contextlib.suppress(FileExistsError), open(path, "x") as file:
                file.write(json.dumps(lock))
                return
            there = read(path)
        if there and is_alive(path, there):
            raise UserError(
                f"{path.parent} is in use by another training, process {there['process']} on "
                f"{there['host']} since {there['since']}; stop that one first, or give another "
                "--workdir.")
        if there:
            print(f"{path.parent} was held by process {there['process']} on {there['host']}, which "
                  "has ended without giving it free; it is taken over", file=sys.stderr)
        path.unlink(missing_ok=True)


def may_live(lock):
    """Whether the process of a lock still runs, or is one of another machine."""
    return lock["host"] != socket.gethostname() or started(lock["process"]) == lock["started"]


def is_alive(path, lock):
    """Whether the process of a lock still runs."""
    if not may_live(lock):
        return False
    if lock["host"] == socket.gethostname():
        return True
    print(f"waiting for a sign of life of process {lock['process']} on {lock['host']}, which may "
          f"still train in {path.parent}", file=sys.stderr, flush=True)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1, PATIENCE))
        now = read(path)
        if now is None or now["beat"] != lock["beat"]:
            return now is not None
    return False


def read(path):
    """The lock in a file; None where there is none, or no usable one."""
    try:
        lock = json.loads(read_bytes(path))
        return lock if {*new_lock()} <= lock.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def started(process):
    """When a process of this machine began, as its kernel counts; None: there is no such process."""
    try:
        # The second field, its name, may hold anything; the time is the 20th after it.
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)  # without /proc
        return "unknown"
    except OSError:
        return None


def _beat(path, lock, ended):
    while not ended.wait(BEAT):
        lock["beat"] += 1
        with contextlib.suppress(OSError):  # a full disk, which the run itself will tell
            write(path, json.dumps(lock))
