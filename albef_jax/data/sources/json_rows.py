"""The rows of JSON lists, however long, in bounded memory."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence

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
        keys: see `read_rows`.

    Attributes:
        digests: of the contents, of each manifest that could be read, by path.
        problems: a sentence about each manifest and row that is wrong, and is left out.
    """

    def __init__(self, files: Sequence[str], parse: Callable, example: str,
                 progress: Callable[[int], object] = lambda count: None, keys: Collection = ()):
        self._files, self._parse, self._example = files, parse, example
        self._progress, self._keys = progress, keys
        self.digests: dict[str, bytes] = {}
        self.problems: list[str] = []

    def __iter__(self) -> Iterator:
        for path in self._files:
            digest = hashlib.blake2b()

            def use(contents: bytes, digest=digest):
                digest.update(contents)
                self._progress(len(contents))

            try:
                yield from self._parsed(path, read_rows(path, use, self._example, self._keys))
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


def read_rows(path: str, use: Callable[[bytes], object], example: str,
              keys: Collection = ()) -> Iterator:
    """Yields the rows of a manifest in order.

    Args:
        path: a JSON list; local, or any path that epath knows.
        use: called with the bytes as they are read, for a digest or a progress bar.
        example: a row as it should be, for the message.
        keys: that rows may have, the first one for its name; with them the file may also have a row
            per line, or be one object with a row for each name, which the rows then have.

    Raises:
        UserError: the file cannot be read, is not valid JSON, or no list.
    """
    start, count, rows = "", 0, ijson.sendable_list()
    parser, finished = ijson.items_coro(rows, "item", use_float=True), list
    try:
        with epath.Path(path).open("rb") as file:
            for text in _texts(file, use):
                if not start and (start := text.lstrip()[:1]) == "{" and keys:
                    parser, finished = _rows_without_list(rows, text, keys)
                if start not in ("", "[", *["{"] * bool(keys)):
                    raise UserError(f"The manifest {path} must be a JSON list of rows, but begins "
                                    f"with {start!r}; write it as [{example}, ...].")
                parser.send(text.encode())
                yield from finished(rows)
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


def _rows_without_list(rows, text: str, keys: Collection):
    """The parser of a row per line, or of an object of rows; and what makes rows of its items."""
    first = re.match(r'\s*{\s*"([^"\\]*)"\s*:\s*{', text)
    if first is None or first[1] in keys:
        return ijson.items_coro(rows, "", multiple_values=True, use_float=True), list
    name = next(iter(keys))

    def named(items) -> list:
        return [{name: key, **row} if isinstance(row, dict) else row for key, row in items]

    return ijson.kvitems_coro(rows, "", use_float=True), named


def _texts(file, use: Callable[[bytes], object]) -> Iterator[str]:
    """The text of a file in pieces, in any encoding that JSON may have."""
    contents = file.read(BLOCK)
    decoder = codecs.getincrementaldecoder(json.detect_encoding(contents))()
    while contents:
        use(contents)
        yield decoder.decode(contents)
        contents = file.read(BLOCK)
    decoder.decode(b"", final=True)
