"""The rows of a JSON list, however long, in bounded memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator

from etils import epath

from albef_jax.errors import UserError

BLOCK = 1 << 22  # bytes that are read at once
LONGEST = 1 << 24  # characters; no text of a row is longer

_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")


def read_rows(path: str, use: Callable[[bytes], object], example: str) -> Iterator[list]:
    """Yields the rows of a manifest in order, some thousand at a time.

    Args:
        path: a JSON list; local, or any path that epath knows.
        use: called with the bytes as they are read, for a digest or a progress bar.
        example: a row as it should be, for the message.

    Raises:
        UserError: the file cannot be read, is not valid JSON, or no list.
    """
    try:
        with epath.Path(path).open("rb") as file:
            yield from _Reader(path, file, use).rows(example)
    except OSError as error:
        raise UserError(
            f"The manifest {path} cannot be read ({error.strerror or error}); check "
            "data.source.files."
        ) from None


class _Reader:
    """Text of a file, of which only what is not yet parsed is kept."""

    def __init__(self, path: str, file, use: Callable[[bytes], object]):
        self._path, self._file, self._use = path, file, use
        self._text, self._position, self._at_end = "", 0, False
        self._chars, self._lines, self._column = 0, 1, 1  # of the start of the text
        self._decoder = None

    def rows(self, example: str) -> Iterator[list]:
        if self._next() != "[":
            self._refuse(example)
        self._position += 1
        ended = self._next() == "]"
        if ended:
            self._position += 1
        while not ended:
            rows, ended = self._parse()
            yield rows
        if self._next():
            raise self._error("Extra data", self._position)

    def _next(self) -> str:
        """Skips white space; the character there, '' at the end of the file."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()
            if self._position < len(self._text) or self._at_end:
                return self._text[self._position : self._position + 1]
            self._read()

    def _parse(self) -> tuple[list, bool]:
        """All rows that are complete in the text so far, and whether the list ends with them."""
        scan, separator = json.JSONDecoder().scan_once, _SEPARATOR.match
        text, rows = self._text, []
        position = _SPACE.match(text, self._position).end()
        try:
            while True:
                row, end = scan(text, position)
                match = separator(text, end)
                if not match:
                    wrong, reason = _SPACE.match(text, end).end(), "Expecting ',' delimiter"
                    break
                rows.append(row)
                position = match.end()
                if match[1] == "]":
                    self._position = position
                    return rows, True
        except json.JSONDecodeError as error:
            wrong, reason = error.pos, error.msg
        except StopIteration as error:
            wrong, reason = error.value, "Expecting value"
        if self._at_end or len(text) - wrong > LONGEST:
            self._position = position
            raise self._error(reason, wrong)
        self._position = position
        self._read()
        return rows, False

    def _read(self) -> None:
        """Reads on; in larger steps as long as a row does not end."""
        self._forget()
        contents = self._file.read(max(BLOCK, len(self._text)))
        self._use(contents)
        self._at_end = not contents
        if self._decoder is None:
            encoding = json.detect_encoding(contents)
            self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        try:
            self._text += self._decoder.decode(contents, final=self._at_end)
        except UnicodeDecodeError as error:
            raise UserError(f"The manifest {self._path} is not valid JSON: {error}.") from None

    def _forget(self) -> None:
        """Drops what is parsed; counts its characters and lines for messages."""
        done = self._text[: self._position]
        self._lines += done.count("\n")
        after_line = done.rfind("\n")
        self._column = self._column + len(done) if after_line < 0 else len(done) - after_line
        self._chars += len(done)
        self._text, self._position = self._text[self._position :], 0

    def _error(self, reason: str, position: int) -> UserError:
        before = self._text[:position]
        line_start = before.rfind("\n")
        column = self._column + position if line_start < 0 else position - line_start
        return UserError(
            f"The manifest {self._path} is not valid JSON: {reason}: line "
            f"{self._lines + before.count(chr(10))} column {column} "
            f"(char {self._chars + position})."
        )

    def _refuse(self, example: str) -> None:
        """Raises UserError: this is no list."""
        while not self._at_end:
            self._read()
        try:
            value = json.loads(self._text)
        except json.JSONDecodeError as error:
            raise self._error(error.msg, error.pos) from None
        raise UserError(
            f"The manifest {self._path} must be a JSON list of rows, but is "
            f"{type(value).__name__}; write it as [{example}, ...]."
        )
