"""The rows of JSON lists, however long, in bounded memory."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import ijson
from etils import epath

from albef_jax.errors import UserError, first_line

BLOCK = 1 << 20  # bytes that are read at once
LISTED = 1000  # wrong rows of a manifest that get a sentence each


class Manifests:
    """Reads manifests while it is iterated, and yields what `parse` makes of each row.

    Args:
        files: JSON lists; local, or any paths that epath knows.
        parse: what a row holds; raises ValueError, whose message goes on after "Row 3 of x.json".
        example: a row as it should be, for messages.
        progress: called with the number of bytes of each block.

    Attributes:
        digests: of the contents, of each manifest that could be read, by path.
        problems: a sentence about each manifest and row that is wrong, and is left out.
    """

    def __init__(self, files: Sequence[str], parse: Callable, example: str,
                 progress: Callable[[int], object] = lambda count: None):
        self._files, self._parse, self._example = files, parse, example
        self._progress = progress
        self.digests: dict[str, bytes] = {}
        self.problems: list[str] = []

    def __iter__(self) -> Iterator:
        for path in self._files:
            digest = hashlib.blake2b()

            def use(contents: bytes, digest=digest):
                digest.update(contents)
                self._progress(len(contents))

            try:
                yield from self._parsed(path, read_rows(path, use, self._example))
                self.digests[path] = digest.digest()
            except UserError as error:
                self.problems.append(str(error))

    def _parsed(self, path: str, rows: Iterator) -> Iterator:
        wrong = 0
        for number, row in enumerate(rows):
            try:
                yield self._parse(row)
            except ValueError as error:
                wrong += 1
                if wrong <= LISTED:
                    self.problems.append(f"Row {number} (counted from 0) of {path} {error}.")
        if wrong > LISTED:
            self.problems.append(f"{wrong - LISTED} more rows of {path} are wrong.")


def read_rows(path: str, use: Callable[[bytes], object], example: str) -> Iterator:
    """Yields the rows of a manifest in order.

    Args:
        path: a JSON list; local, or any path that epath knows.
        use: called with the bytes as they are read, for a digest or a progress bar.
        example: a row as it should be, for the message.

    Raises:
        UserError: the file cannot be read, is not valid JSON, or no list.
    """
    start, count, rows = "", 0, ijson.sendable_list()
    parser = ijson.items_coro(rows, "item", use_float=True)
    try:
        with epath.Path(path).open("rb") as file:
            for text in _texts(file, use):
                start = start or text.lstrip()[:1]
                if start not in ("", "["):
                    raise UserError(f"The manifest {path} must be a JSON list of rows, but begins "
                                    f"with {start!r}; write it as [{example}, ...].")
                parser.send(text.encode())
                yield from rows
                count += len(rows)
                rows.clear()
        parser.close()
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read ({error.strerror or error}); check "
                        "data.source.files.") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        near = [f" near {line.strip()!r}" for line in str(error).splitlines()[1:2] if line.strip()]
        raise UserError(f"The manifest {path} is not valid JSON: {first_line(error)}"
                        f"{''.join(near)}, after {count + len(rows)} rows.") from None


def _texts(file, use: Callable[[bytes], object]) -> Iterator[str]:
    """The text of a file in pieces, in any encoding that JSON may have."""
    contents = file.read(BLOCK)
    decoder = codecs.getincrementaldecoder(json.detect_encoding(contents))()
    while contents:
        use(contents)
        yield decoder.decode(contents)
        contents = file.read(BLOCK)
    decoder.decode(b"", final=True)
