"""Random access to the members of a plain tar file."""

from __future__ import annotations

import os
import posixpath
import tarfile

from albef_jax.errors import UserError
from albef_jax.files import local_copy


class TarFolder:
    """Reads members of an uncompressed tar as if it were a folder.

    The index is built once. Reads use `os.pread`, which has no file position to share: any number
    of threads or forked processes can read at the same time. One on an object store is copied to
    this machine first.

    Raises:
        UserError: the file is not a plain tar.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            local = local_copy(path)
            with tarfile.open(local, "r:") as tar:
                self._members = {
                    posixpath.normpath(member.name): (member.offset_data, member.size)
                    for member in tar
                    if member.isreg()
                }
        except (tarfile.TarError, EOFError):
            raise UserError(
                f"{path} is not a readable, uncompressed tar file; give a folder or a plain .tar "
                "(unpack a compressed one first)."
            )
        self._file = open(local, "rb", buffering=0)

    def __len__(self) -> int:
        return len(self._members)

    def read(self, name: str) -> bytes:
        """Contents of one member.

        Raises:
            FileNotFoundError: there is no such member.
            OSError: the tar ends before the member does.
        """
        try:
            offset, size = self._members[posixpath.normpath(name)]
        except KeyError:
            raise FileNotFoundError(f"{name} is not in {self.path}") from None
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends inside {name}")
        return data
