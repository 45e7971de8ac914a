"""Files on object stores such as gs://, where epath alone will not do.

Everything that takes a path takes what `epath` knows. What is here is for libraries that want a
local file (safetensors, zip files, tar files, traces), and for files that grow, which object
stores do not have.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import time

from etils import epath
from filelock import FileLock, Timeout

from albef_jax.errors import UserError, first_line, running, shown

REWRITE_SECONDS = 10  # an object may be written once a second at most


def is_remote(path) -> bool:
    """Whether a path is on an object store."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """The path from the root."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def read_bytes(path) -> bytes:
    """Contents of a file anywhere; an OSError has `strerror`, whatever the client raises."""
    with readable_errors(path):
        return epath.Path(path).read_bytes()


@contextlib.contextmanager
def readable_errors(path):
    """Turns what clients of object stores raise into OSErrors with `strerror`."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from None
    except UserError:
        raise
    except Exception as error:  # of TensorFlow, gcsfs, or an ImportError
        if isinstance(error, OSError) and error.strerror:
            raise
        raise OSError(errno.EIO, first_line(error), os.fspath(path)) from error


def local_copy(path) -> str:
    """The path itself, or a copy of a file or folder of an object store, kept while we run.

    What does not exist comes back as it is: who opens it has the sentence for that. A store that
    cannot be read is a UserError.
    """
    path = os.fspath(path)
    try:
        with readable_errors(path):
            return _fetched(path) if is_remote(path) and epath.Path(path).exists() else path
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and the access "
                        "to the bucket.") from error


@functools.cache
def _fetched(path):
    folder = tempfile.mkdtemp(prefix="albef_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = epath.Path(folder) / epath.Path(path).name
    _copy(epath.Path(path), copy)
    return os.fspath(copy)


def _copy(source, target):
    """Copies a file or a folder."""
    if not source.is_dir():
        source.copy(target, overwrite=True)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        _copy(path, target / path.name)


@contextlib.contextmanager
def uploaded(path):
    """Yields a local path to write a file or folder to: itself, or one that is copied (OSError)."""
    if not is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = epath.Path(folder) / epath.Path(path).name
        yield os.fspath(local)
        if local.exists():
            with readable_errors(path):
                _copy(local, epath.Path(path))


@contextlib.contextmanager
def aside(path):
    """Yields a path beside `path`, for a file or folder that is renamed when it is complete.

    A link stays: what it leads to is replaced. Raises OSError where that is a device or the like.
    """
    if not is_remote(path):
        path = os.path.realpath(path)
        if is_special(path):
            raise OSError(errno.EINVAL, "it is a device, a pipe or a socket", path)
    path = epath.Path(path)
    unfinished = path.parent / f"{path.name}.unfinished"
    _remove(unfinished)  # of one that was killed
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        _remove(unfinished)


def _remove(path):
    """Removes a file or folder, if it is there."""
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def completed(path):
    """As `uploaded`, but as a whole or not at all; of a folder on an object store each file is.

    A pipe gets the file when it is complete.
    """
    if is_remote(path):
        place = uploaded
    else:
        place = piped if is_pipe(path) else aside
    with place(path) as local:
        yield os.fspath(local)


@contextlib.contextmanager
def piped(path):
    """Yields a path for a file that goes into the pipe at `path` when it is complete."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        yield local
        with open(local, "rb") as file, open(path, "wb") as pipe:
            shutil.copyfileobj(file, pipe)


def is_pipe(path) -> bool:
    """Whether a local path is a pipe, or leads to one."""
    return os.path.exists(path) and stat.S_ISFIFO(os.stat(path).st_mode)


def is_special(path) -> bool:
    """Whether a local path is, or leads to, something that is neither file nor folder."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_out(path, endings=(), option="--out") -> None:
    """Checks, before minutes of work, that a file can be written where an option says.

    Args:
      path: of a new file or an old one, which is replaced, in a folder that exists; of a pipe; of a
        link to one of these; or on an object store, where nothing is checked.
      endings: that its name may have.

    Raises:
      UserError: it is something else.
    """
    why = ""
    if endings and os.path.splitext(path)[1].lower() not in endings:
        why = f"its name does not end in one of {', '.join(endings)}"
    elif is_remote(path) or is_pipe(path):
        return
    elif os.path.isdir(path):
        why = "it is a folder"
    elif is_special(path):
        why = "it is a device"
    elif not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        why = "its folder does not exist"
    if why:
        raise UserError(f"{path} cannot be written, as {why}; give {option} the name of a file.")


def write(path, text: str) -> None:
    """Writes a text file as a whole or not at all; raises OSError."""
    with completed(path) as unfinished:
        pathlib.Path(unfinished).write_text(text, encoding="utf-8")


def cache_folder(name: str) -> pathlib.Path:
    """Our folder of that name in the user's cache."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "albef_jax" / name


def locked(path, doing: str) -> contextlib.AbstractContextManager:
    """A context for one process at a time; the others say that they wait for one that is `doing`.

    The lock is a file beside `path` (OSError). Object stores know none: there nobody waits.
    """
    if is_remote(path):
        return contextlib.nullcontext()
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process, which is {doing}", file=sys.stderr)
        return lock.acquire()


class GrowingFile:
    """A file that is appended to; its methods raise OSError.

    Object stores cannot append: there the whole is written anew, when `REWRITE_SECONDS` have
    passed since the last time and when the file is closed.
    """

    def __init__(self, path):
        self.path, self._remote = epath.Path(path), is_remote(path)
        self._contents = self.path.read_bytes() if self._remote and self.path.exists() else b""
        self._stored, self._when = len(self._contents), -REWRITE_SECONDS

    def write(self, data: bytes) -> None:
        if self._remote:
            self._contents += data
            self.flush()
        else:
            with self.path.open("ab") as file:
                file.write(data)

    def flush(self) -> None:
        """Writes what is due."""
        if time.monotonic() - self._when >= REWRITE_SECONDS:
            self.close()

    def close(self) -> None:
        """Writes everything."""
        if len(self._contents) > self._stored:
            with readable_errors(self.path):
                self.path.write_bytes(self._contents)
            self._stored, self._when = len(self._contents), time.monotonic()


def absolute_name(name) -> str:
    """`path/to/file.py:Class` with an absolute path; other names of classes as they are."""
    path, colon, cls = str(name).rpartition(":")
    return f"{absolute(path)}:{cls}" if colon and path.endswith(".py") else name


def find_class(name, known, base, key):
    """The class that a config names; UserError if there is none.

    Args:
      name: one of `known`, `package.module:Class` or `path/to/file.py:Class`.
      known: name -> `package.module:Class` of our own.
      base: class that it must be derived from. key: of the config, for messages.
    """
    path, colon, cls = str(known.get(name, name) if isinstance(name, str) else "").rpartition(":")
    if not colon:
        raise UserError(f"{key} is {shown(name)}; use one of {', '.join(known)}, or name a class "
                        "of your own as package.module:Class or path/to/file.py:Class.")
    module = _module_of_file(path) if path.endswith(".py") else _module_of_package(path, key)
    found = getattr(module, cls, None)
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(f"{key} is {name!r}, but {path} has no class {cls} derived from "
                        f"{base.__module__}.{base.__name__}; define it there, or name another.")
    return found


def _module_of_package(path, key):
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not f"{path}.".startswith(f"{error.name}."):
            raise  # of something that the module itself imports
        raise UserError(f"{key} names the module {path}, which cannot be imported; install it, or "
                        "name a file as path/to/file.py:Class.") from None


def _module_of_file(path):
    local = local_copy(absolute(path))
    name = "albef_jax_file_" + hashlib.blake2b(local.encode(), digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    if not os.path.isfile(local):
        raise UserError(f"The file {path} does not exist; give the path of a Python file, as "
                        "path/to/file.py:Class.")
    spec = importlib.util.spec_from_file_location(name, local)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with running(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
