"""JSON manifests with images in folders and tar files: what the sources that read them share."""

import collections
import hashlib
import itertools
import os
import posixpath
import tarfile
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from etils import epath

from albef_jax.data.sources.json_rows import Manifests
from albef_jax.data.sources.numbering import NumberedSource, hashed, number
from albef_jax.errors import UserError
from albef_jax.files import is_remote, local_copy, read_bytes


WORDS = {str: "a text", list: "a list", dict: "an object", int: "a whole number", float: "a number",
         bool: "true or false"}  # of the types that a value may have
LINKS = 8  # that follow each other in a tar
URLS = ("http://", "https://", "ftp://")


class WrongManifest(UserError):
    """What is wrong with manifests and image roots, and the source without it.

    Attributes:
        problems: a sentence about each manifest, row and root.
        source: what can be read.
    """

    def __init__(self, problems: list[str], source: "ManifestSource"):
        more = f"; `albef data check` lists {len(problems) - 1} more." if problems[1:] else "."
        super().__init__(problems[0].rstrip(".") + more)
        self.problems, self.source = problems, source


class ManifestSource(NumberedSource):
    """Rows of one or several manifests, each a JSON list.

    A subclass sets `row_format`, appends an example for each row in `add`, and has methods for the
    fields that it does not append.

    Args:
        files: manifests, read in this order.
        image_roots: folders and plain tar files, searched in this order for each image; without
            any, the folders of the manifests. An absolute image name is taken as it is.
        kind: kind and options of the source; part of the fingerprint.

    Attributes:
        row_format: a row as an example, for messages. row_keys: see `read_rows`.
        manifest: the one that is being read, for `add`.
        names: the image of each example; of several views, a tuple of names.
        columns: name of a field -> its raw values.

    Raises:
        WrongManifest: a manifest, a row or an image root is unusable; names the file and the row.
    """

    row_format: str
    row_keys: Sequence[str] = ()

    def __init__(self, files: Sequence[str], image_roots: Sequence[str], kind: str):
        files = [files] if isinstance(files, str) else list(files)
        image_roots = [image_roots] if isinstance(image_roots, str) else list(image_roots)
        self.columns: dict[str, list] = collections.defaultdict(list)
        digests, problems = self.read_manifests(files)
        if not len(self) and not problems:
            problems.append(f"The manifest {files} holds no rows; give one with {self.row_format}.")
        self.finish()
        self._roots: list[Callable[[str], bytes]] = []  # each reads a name
        for root in image_roots or dict.fromkeys(os.path.dirname(path) or "." for path in digests):
            try:
                self._roots.append(_open_root(root))
            except UserError as error:
                problems.append(str(error))
        digest = hashlib.blake2b(kind.encode(), digest_size=16)
        for path in files:
            digest.update(digests.get(path, b""))
        self.fingerprint = digest.hexdigest()
        if problems:
            raise WrongManifest(problems, self)

    def read_manifests(self, files: list[str]) -> tuple[dict[str, bytes], list[str]]:
        """Reads all rows; returns `digests` and `problems` as of `Manifests`."""
        self.names: list[Hashable] = []
        digests, problems = {}, []
        for self.manifest in files:
            rows = Manifests([self.manifest], self.add, self.row_format, keys=self.row_keys)
            collections.deque(rows, maxlen=0)
            digests |= rows.digests
            problems += rows.problems
        self._image_ids = number(hashed(map(repr, self.names)))
        return digests, problems

    def add(self, row) -> None:
        """Appends what a row of a manifest holds.

        Raises:
            ValueError: the row is wrong; the message goes on after "Row 3 of rows.json".
        """
        raise NotImplementedError

    def append(self, name: Hashable, **values: Any) -> None:
        """Appends an example: its image, and a raw value for each of its columns."""
        self.names.append(name)
        for field, value in values.items():
            self.columns[field].append(value)

    def finish(self) -> None:
        """Called once when all rows are there; before the image roots are opened."""

    @classmethod
    def checked(cls, **options) -> tuple["ManifestSource", list[str]]:
        """The source without what is wrong, and a sentence about each manifest, row and root."""
        try:
            return cls(**options), []
        except WrongManifest as error:
            return error.source, error.problems

    @classmethod
    def options(cls, text: str) -> dict:
        return {"files": (text,)}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        names = self.names[index]
        return names if isinstance(names, str) else ", ".join(names)

    def get(self, index: int, field: str) -> Any:
        if field in self.columns:
            return self.columns[field][index]
        return super().get(index, field)

    def image(self, index: int) -> bytes:
        return self.read(self.name(index))

    def read(self, name: str) -> bytes:
        """The file of an image; raises OSError."""
        if name.startswith(URLS):
            raise OSError("a url; images are not downloaded, so save them and name the files")
        for read, form in itertools.product(self._roots, forms(name)):
            try:
                return read(form)
            except FileNotFoundError:
                continue
        if "\\" in name:
            raise OSError("missing; it looks like a path of Windows: write / between folders")
        raise FileNotFoundError("not found in any image root")


class TarFolder:
    """Reads members of an uncompressed tar, on an object store after it was copied to this machine.

    Reads use `os.pread`, which has no file position to share: any number of threads or forked
    processes can read at the same time. Raises a UserError if the file is not a plain tar.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            local = local_copy(path)
            with tarfile.open(local, "r:") as tar:
                members = {posixpath.normpath(member.name): member for member in tar}
                self._members = {name: (real.offset_data, real.size)
                                 for name in members if (real := _behind_links(members, name))}
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"{path} is not a readable, uncompressed tar file; give a folder or a "
                            "plain .tar (unpack a compressed one first).") from error
        self._file = open(local, "rb", buffering=0)

    def read(self, name: str) -> bytes:
        """Contents of one member; raises FileNotFoundError without it, OSError where it is cut."""
        try:
            offset, size = self._members[posixpath.normpath(name)]
        except KeyError:
            raise FileNotFoundError(f"{name} is not in {self.path}") from None
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise OSError(f"{self.path} ends inside {name}")
        return data


def _behind_links(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo | None:
    """The file that a member of a tar is, or leads to; None where it leads nowhere."""
    for _ in range(LINKS):
        member = members.get(name)
        if member is None or member.isreg():
            return member
        if not (member.islnk() or member.issym()):
            return None
        beside = posixpath.dirname(name) if member.issym() else ""
        name = posixpath.normpath(posixpath.join(beside, member.linkname))
    return None


def forms(name: str) -> list[str]:
    """A name as it is, and in both of Unicode's normal forms, where these differ."""
    return [name] if name.isascii() else list(dict.fromkeys(
        [name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)]))


def fields_of(row, **types: type | tuple[type, ...]) -> list:
    """The values of a row under these names.

    Raises:
        ValueError: the row is no object, or a value is absent or of another type.
    """
    for name, kind in types.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(dict.fromkeys(WORDS[one] for one in kinds))
            raise ValueError(f'must be an object whose "{name}" is {wanted}, but is '
                             f"{str(row)[:100]}")
    return [row[name] for name in types]


def _open_root(path: str) -> Callable[[str], bytes]:
    """What reads the file of a name in a folder or tar; raises OSError."""
    root = epath.Path(path)
    if root.is_dir():
        return lambda name: read_bytes(name if is_remote(name) else os.path.join(path, name))
    if root.exists():
        return TarFolder(path).read
    raise UserError(f"The image root {path} does not exist; give a folder or a .tar file.")
