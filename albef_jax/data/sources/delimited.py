"""Rows of CSV and TSV files, with a header or, of captions and images, without one."""

import csv
import re
import sys
from collections.abc import Collection, Iterable, Iterator

from albef_jax.errors import UserError, listed

ENDINGS = (".csv", ".tsv")
SEPARATORS = ",;\t|"
PLACE = re.compile(r"(\w+://\S+|[^\s]+\.\w{2,5})")  # a url, or the name of a file


def is_delimited(path: str) -> bool:
    return str(path).lower().endswith(ENDINGS)


def rows_of(path: str, texts: Iterable[str], keys: Collection[str]) -> Iterator[dict]:
    """Yields the rows as dicts, and says once what their columns are taken for.

    Args:
        path: for the separator and for messages. texts: of the file, in pieces.
        keys: names of columns that a header may have. Without a header the column that holds names
            of files is `image`, and the first other one `caption`, as in CC3M.

    Raises:
        UserError: there is no header and no column of file names, or a row has other columns.
    """
    lines = _lines(texts)
    first = next(lines, "")
    tabs = str(path).lower().endswith(".tsv")
    separator = "\t" if tabs else max(SEPARATORS, key=first.count)
    # Captions of TSV files have quotation marks that nobody closed.
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    rows = csv.reader(_with(first, lines), delimiter=separator, quoting=quoting)
    try:
        head = next(rows, [])
        names = [name.strip().lower() for name in head]
        if {*names} & {*keys}:
            print(f"{path} has the columns {', '.join(names)}", file=sys.stderr)
        else:
            names = _without_header(path, head, keys)
            yield dict(zip(names, head))
        for number, row in enumerate(rows):
            if row and len(row) != len(names):
                raise UserError(f"Row {number} of {path} has {len(row)} columns, and others have "
                                f"{len(names)}; mend it, or quote texts that hold {separator!r}.")
            if row:
                yield dict(zip(names, row))
    except csv.Error as error:
        raise UserError(f"The manifest {path} is no table ({error}); write it as JSON.") from None


def _without_header(path: str, row: list[str], keys: Collection[str]) -> list[str]:
    """The names of the columns of a file that begins with this row; says what they are."""
    places = [number for number, cell in enumerate(row) if PLACE.fullmatch(cell.strip())]
    if len(row) < 2 or len(places) != 1:
        raise UserError(f"The manifest {path} has no header, and no column that is plainly that of "
                        f"the images; put a line before its rows that names the columns, such as "
                        f"{listed(keys, 2)}.")
    (image,) = places
    caption = 1 if image == 0 else 0
    print(f"{path} has no header: column {image + 1} is taken for the image, column {caption + 1} "
          "for the caption", file=sys.stderr)
    return [{image: "image", caption: "caption"}.get(number, f"column {number + 1}")
            for number in range(len(row))]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; only \\n and \\r\\n end one."""
    rest = ""
    for text in texts:
        *whole, rest = (rest + text).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest


def _with(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others
