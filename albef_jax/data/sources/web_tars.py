"""Image-text pairs in tars as WebDataset and img2dataset write them: a file per part of a pair.

`shard/00000.jpg`, `shard/00000.txt` and `shard/00000.json` are parts of one pair: they follow each
other, and their names are equal up to the first dot. The tars are read through once, for captions
and for the place of each image; of large ones that is kept, see `index`.
"""

import functools
import glob
import hashlib
import itertools
import json
import os
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from albef_jax.data.sources.base import pairs, readable
from albef_jax.data.sources.index import SCHEMA, open_index
from albef_jax.data.sources.json_source import CAPTION
from albef_jax.data.sources.numbering import NumberedSource
from albef_jax.errors import UserError, first_line, listed
from albef_jax.files import is_remote, local_copy

IMAGES = ("jpg", "jpeg", "png", "webp", "jfif", "avif", "bmp", "gif", "tif", "tiff")
TEXTS = ("txt", "text", "caption", "cap")  # endings of a caption by itself
PLACED = pa.schema([*SCHEMA, ("tar", pa.int32()), ("start", pa.int64()), ("size", pa.int64())])
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
WILD = re.compile(r"[*?\[]")


class WebTarsSource(NumberedSource):
    """The pairs of tars, in their order.

    What has no image or no caption is counted and left out, as loaders of such tars do.

    Args:
        files: uncompressed tars; a name may hold a range, `{00000..00031}`, or wildcards. Those of
            an object store are copied to this machine.
        caption: the ending of the member that is the caption, or a key of the JSON; '': a member
            that ends as in `TEXTS`, else the first key of `json_source.CAPTION` that there is.

    Raises:
        UserError: a file cannot be read or is no plain tar, or there are no pairs.
    """

    fields = pairs()

    def __init__(self, files: Sequence[str], caption: str = ""):
        files = [files] if isinstance(files, str) else files
        self._files = list(itertools.chain.from_iterable(map(named_files, files)))
        self._index = open_index(self._files, functools.partial(_Pairs, self._files, caption),
                                 f"tars {caption}", PLACED)
        if self._index.problems:
            raise UserError(self._index.problems[0])
        self._image_ids = self._index.image_ids
        if not len(self):
            raise UserError(f"{listed(self._files, 3)} hold no pairs: members such as 0.jpg and "
                            f"0.txt, or 0.json with one of {', '.join(CAPTION)}; name the ending "
                            "or the key of the caption with data.source.caption.")
        digest = hashlib.blake2b(f"tars {caption}".encode(), digest_size=16)
        for path in self._files:
            digest.update(self._index.digests[path])
        self.fingerprint = digest.hexdigest()

    @classmethod
    def options(cls, text: str) -> dict:
        return {"files": (text,)}

    def __len__(self) -> int:
        return len(self._index.table)

    def name(self, index: int) -> str:
        return self._index.names[index].as_py()

    def text(self, index: int) -> list[str]:
        return self._index.captions[index].as_py()

    def image(self, index: int) -> bytes:
        """The file of an image; raises OSError."""
        tar, start, size = (self._index.table[name][index].as_py()
                            for name in ("tar", "start", "size"))
        path = local_copy(self._files[tar])
        # Opened for each read: a thousand shards are more files than a process may hold open.
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, start)
        if len(data) != size:
            raise OSError(f"{self._files[tar]} ends inside it")
        return data


class _Pairs:
    """Reads tars while it is iterated: name, captions, number of the tar, and place of the image.

    Attributes:
        digests, problems: see `json_rows.Manifests`; here of all names, sizes and captions.
    """

    def __init__(self, files: Sequence[str], caption: str,
                 progress: Callable[[int], object] = lambda count: None):
        self._files, self._caption, self._progress = files, caption, progress
        self.digests: dict[str, bytes] = {}
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[tuple]:
        left_out = Counter()
        for number, path in enumerate(self._files):
            digest = hashlib.blake2b()
            try:
                for members, read in _groups(local_copy(path), self._progress):
                    pair = self._pair(members, read)
                    if isinstance(pair, str):
                        left_out[pair] += 1
                        continue
                    image, captions = pair
                    digest.update(repr((image.name, image.size, captions)).encode())
                    yield (f"{path}/{image.name}", captions, number, image.offset_data, image.size)
                self.digests[path] = digest.digest()
            except (tarfile.TarError, EOFError):
                self.problems.append(f"{path} is not a whole, uncompressed tar; copy it again, or "
                                     "unpack a compressed one first.")
            except OSError as error:
                self.problems.append(f"{path} cannot be read ({error.strerror or error}); check "
                                     "data.source.files.")
        for why, count in left_out.items():
            print(f"{count} of what is in {listed(self._files, 2)} is left out: {why}",
                  file=sys.stderr)

    def _pair(self, members: dict[str, tarfile.TarInfo], read: Callable) -> tuple | str:
        """The image and the captions of members by ending; or why they are no pair."""
        image = next((members[name] for name in IMAGES if name in members), None)
        if image is None:
            return "no image"
        endings = (self._caption,) if self._caption else TEXTS
        text = next((members[name] for name in endings if name in members), None)
        try:
            if text is not None:
                return image, [readable(read(text).decode("utf-8-sig").strip())]
            row = json.loads(read(members["json"]))
            captions = next(row[key] for key in ((self._caption,) if self._caption else CAPTION)
                            if row.get(key))
        except (KeyError, StopIteration, AttributeError):  # no JSON, no such key, no object
            return "no caption"
        except (ValueError, RecursionError) as error:
            return f"its caption cannot be read ({first_line(error)})"
        captions = [captions] if isinstance(captions, str) else captions
        if not all(isinstance(one, str) for one in captions):
            return "its caption is no text"
        return image, [*map(readable, captions)]


def _groups(path: str, progress: Callable[[int], object]) -> Iterator[tuple[dict, Callable]]:
    """The members of a tar that belong together, by ending; and what reads one."""
    with tarfile.open(path, "r:") as tar:
        def files():
            done = 0
            for member in tar:
                tar.members.clear()  # which would hold every one
                progress(member.offset - done)
                done = member.offset
                if member.isreg() and not os.path.basename(member.name).startswith("."):
                    yield member
            progress(os.path.getsize(path) - done)

        for _, some in itertools.groupby(files(), lambda member: _parts(member.name)[0]):
            yield ({_parts(member.name)[1]: member for member in some},
                   lambda member: tar.extractfile(member).read())


def _parts(name: str) -> tuple[str, str]:
    """The name of a pair, and the ending that tells its parts apart."""
    folder, base = os.path.split(name)
    key, _, ending = base.partition(".")
    return os.path.join(folder, key), ending.lower()


def named_files(name: str) -> list[str]:
    """The files that a name with a range or wildcards stands for, in order; raises UserError."""
    match = BRACES.search(name)
    if match:
        first, last = match.groups()
        names = (f"{name[:match.start()]}{number:0{len(first)}d}{name[match.end():]}"
                 for number in range(int(first), int(last) + 1))
        return [file for one in names for file in named_files(one)]
    if not WILD.search(os.path.basename(name)) or is_remote(name):
        return [name]
    found = sorted(glob.glob(name))
    if not found:
        raise UserError(f"No file is named like {name}; check data.source.files.")
    return found
