"""Files on object stores such as gs://, where epath alone will not do.

Everything that takes a path takes what `epath` knows. What is here is for libraries that want a
local file (safetensors, zip files, tar files, traces), and for files that grow, which object
stores do not have.
"""

import contextlib
import errno
import functools
import os
import shutil
import tempfile
import time

from etils import epath

from albef_jax.errors import UserError

REWRITE_SECONDS = 10  # an object may be written once a second at most


def is_remote(path) -> bool:
    """Whether a path is on an object store."""
    return "://" in os.fspath(path)


def absolute(path) -> str:
    """The path from the root."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def read_bytes(path) -> bytes:
    """Contents of a file anywhere.

    Raises:
      OSError: with `strerror`, whatever the client of the object store raises.
    """
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
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OSError(errno.EIO, lines[0][:200].rstrip("."), os.fspath(path)) from error


@functools.cache
def _temporary():
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="albef_jax-")


def local_copy(path) -> str:
    """The path itself, or a copy of a file or folder of an object store, kept while we run.

    What does not exist comes back as it is: who opens it has the sentence for that.

    Raises:
      UserError: the store cannot be read.
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
    copy = epath.Path(tempfile.mkdtemp(dir=_temporary().name)) / epath.Path(path).name
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
    """Yields a local path to write a file or folder to: the path itself, or one that is copied.

    Raises:
      OSError: it cannot be copied there.
    """
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
def completed(path):
    """As `uploaded`, but what is written is at `path` as a whole or not at all.

    Of a folder on an object store each file is.
    """
    if is_remote(path):
        with uploaded(path) as local:
            yield local
        return
    unfinished = f"{os.fspath(path)}.unfinished"
    if os.path.isdir(unfinished):
        shutil.rmtree(unfinished)  # of one that was interrupted
    yield unfinished
    os.replace(unfinished, path)


class GrowingFile:
    """A file that is appended to.

    Object stores cannot append: there the whole is written anew, when `REWRITE_SECONDS` have
    passed since the last time and when the file is closed.
    """

    def __init__(self, path):
        self.path, self._remote = epath.Path(path), is_remote(path)
        self._contents = self.path.read_bytes() if self._remote and self.path.exists() else b""
        self._stored, self._when = len(self._contents), -REWRITE_SECONDS

    def write(self, data: bytes) -> None:
        """Appends; raises OSError."""
        if self._remote:
            self._contents += data
            self.flush()
        else:
            with self.path.open("ab") as file:
                file.write(data)

    def flush(self) -> None:
        """Writes what is due; raises OSError."""
        if time.monotonic() - self._when >= REWRITE_SECONDS:
            self.close()

    def close(self) -> None:
        """Writes everything; raises OSError."""
        if len(self._contents) > self._stored:
            with readable_errors(self.path):
                self.path.write_bytes(self._contents)
            self._stored, self._when = len(self._contents), time.monotonic()
