"""The rows of manifests, however long, in bounded memory: JSON, lines of JSON, CSV and TSV."""

import codecs
import hashlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import charset_normalizer
import ijson
from etils import epath

from albef_jax.data.sources.delimited import is_delimited, rows_of
from albef_jax.errors import UserError, first_line, listed

COCO = ("info", "licenses", "images", "annotations", "type")  # keys of its captions file
# Encodings of many letters, and of few, the commonest first.
COMMON = (("gb18030", "big5", "shift_jis", "cp949", "euc_jp"), ("cp1252", "cp1251", "latin_1"))
# An escape that is half a character: a first half without a second, or the other way round.
HALF = re.compile(r"(?<!\\)(\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]..)", re.IGNORECASE)
# What the next piece of a text may go on with: a part of an escape, or a first half.
OPEN = re.compile(r"\\(u[0-9a-f]{0,3})?$|\\ud[89ab]..(\\(u[0-9a-f]{0,3})?)?$", re.IGNORECASE)
LONGEST = 11  # characters of it
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
            except (ValueError, RecursionError) as error:
                why = "is nested too deeply" if isinstance(error, RecursionError) else error
                wrong += 1
                if wrong <= LISTED:
                    self.problems.append(f"Row {number} (counted from 0) of {path} {why}.")
        if wrong > LISTED:
            self.problems.append(f"{wrong - LISTED} more rows of {path} are wrong.")


def read_rows(path: str, use: Callable[[bytes], object], example: str,
              keys: Collection = ()) -> Iterator:
    """Yields the rows of a manifest in order.

    Args:
        path: a JSON list, CSV or TSV; local, or any path that epath knows.
        use: called with the bytes as they are read, for a digest or a progress bar.
        example: a row as it should be, for the message.
        keys: that rows may have, the first one for its name; with them the file may also have a row
            per line, be a captions file of COCO, or one object with a row for each name, which the
            rows then have; and be a table.

    Raises:
        UserError: the file cannot be read, is not valid JSON, or no list.
    """
    if keys and is_delimited(path):
        yield from _delimited(path, use, keys)
        return
    halves, start, count, rows = 0, "", 0, ijson.sendable_list()
    parser, finished = ijson.items_coro(rows, "item", use_float=True), list
    try:
        with epath.Path(path).open("rb") as file:
            for text in _whole_escapes(_texts(file, use)):
                if not start and (start := text.lstrip()[:1]) == "{" and keys:
                    parser, finished = _rows_without_list(rows, text, keys)
                if start not in ("", "[", *["{"] * bool(keys)):
                    raise UserError(f"The manifest {path} must be a JSON list of rows, but begins "
                                    f"with {start!r}; write it as [{example}, ...].")
                text, count_here = HALF.subn(r"\\ufffd", text)
                halves += count_here
                parser.send(text.encode())
                yield from finished(rows)
                count += len(rows)
                rows.clear()
        parser.close()
        if halves:
            print(f"{path} has {halves} half characters, as of an emoji that was cut; they are "
                  "replaced", file=sys.stderr)
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read ({error.strerror or error}); check "
                        "data.source.files.") from None
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise other_encoding(path, error) from None
    except RecursionError:
        raise UserError(f"The manifest {path} is nested too deeply, after {count + len(rows)} "
                        f"rows; write it as [{example}, ...].") from None
    except (ijson.JSONError, ValueError) as error:  # the latter of a number of 5,000 digits
        near = [f" near {line.strip()!r}" for line in str(error).splitlines()[1:2] if line.strip()]
        raise UserError(f"The manifest {path} is not valid JSON: {first_line(error)}"
                        f"{''.join(near)}, after {count + len(rows)} rows.") from None


def _rows_without_list(rows, text: str, keys: Collection):
    """The parser of a row per line, or of an object of rows; and what makes rows of its items."""
    first = re.match(r'\s*{\s*"([^"\\]*)"\s*:\s*([{\[])', text)
    if first and first[1] in COCO and not {*COCO} & {*keys}:
        return ijson.items_coro(rows, "", multiple_values=True, use_float=True), _of_coco
    if first is None or first[2] == "[" or first[1] in keys:
        return ijson.items_coro(rows, "", multiple_values=True, use_float=True), list
    name = next(iter(keys))

    def named(items) -> list:
        return [{name: key, **row} if isinstance(row, dict) else row for key, row in items]

    return ijson.kvitems_coro(rows, "", use_float=True), named


def _of_coco(values) -> list:
    """A row for each caption of COCO's files; raises ValueError."""
    rows = []
    for value in values:
        try:
            names = {image["id"]: image["file_name"] for image in value["images"]}
            rows += [{"image": names[one["image_id"]], "caption": one["caption"]}
                     for one in value["annotations"]]
        except (KeyError, TypeError) as error:
            raise ValueError('it has no "images" with "id" and "file_name", and "annotations" with '
                             f'"image_id" and "caption" ({error})') from None
    return rows


def _delimited(path: str, use: Callable[[bytes], object], keys: Collection) -> Iterator[dict]:
    try:
        with epath.Path(path).open("rb") as file:
            yield from rows_of(path, _texts(file, use), keys)
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be read ({error.strerror or error}); check "
                        "data.source.files.") from None
    except UnicodeDecodeError as error:
        raise other_encoding(path, error) from None


def other_encoding(path: str, error: UnicodeDecodeError) -> UserError:
    """The sentence about a file that is no UTF-8, with the encoding that it probably has."""
    best = charset_normalizer.from_bytes(error.object).best()
    # Of a few letters several are as likely; the commonest ones come first.
    known = next((some for some in COMMON if best and {*some} & {*best.could_be_from_charset}), ())
    likely = [name for name in known if _decodes(error.object, name)] or (
        [best.encoding] if best else [])
    return UserError(f"The manifest {path} is not {error.encoding.upper()}"
                     f"{f'; it looks like {listed(likely, 2)}' if likely else ''}: write it in "
                     f"UTF-8, as iconv does{f' with -f {likely[0]}' if likely else ''}.")


def _decodes(contents: bytes, encoding: str) -> bool:
    try:
        contents.decode(encoding)
        return True
    except UnicodeDecodeError as error:
        return error.start > len(contents) - 4  # cut inside a letter


def _whole_escapes(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end between two characters: parsers trip over half ones."""
    rest = ""
    for text in texts:
        text = rest + text
        begun = OPEN.search(text, max(len(text) - LONGEST, 0))
        end = begun.start() if begun else len(text)
        rest = text[end:]
        if end:
            yield text[:end]
    if rest:
        yield rest


def _texts(file, use: Callable[[bytes], object]) -> Iterator[str]:
    """The text of a file in pieces, in any encoding that JSON may have."""
    contents = file.read(BLOCK)
    decoder = codecs.getincrementaldecoder(json.detect_encoding(contents))()
    while contents:
        use(contents)
        yield decoder.decode(contents)
        contents = file.read(BLOCK)
    decoder.decode(b"", final=True)
