"""Property tables of products, as people write them, as pairs of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PAIRS, PARTS = "#;#", "#:#"  # between pairs, and between property and value, in one text
NOTHING = 1  # characters of a text that stands for an empty table, such as '-', at most
EXAMPLE = '[["colour", "red"], ...], {"colour": "red", ...} or "colour#:#red#;#..."'

Pairs = list[tuple[str, str]]


def parse_table(table) -> Pairs:
    """Properties and values in order; a value is '' where there is none.

    Args:
        table: a list of pairs (or of objects with "key" and "value"), an object, or one text in
            the format of M5Product; None: no table.

    Raises:
        ValueError: it is none of these; the message goes on after "the table".
    """
    if table is None:
        return []
    if isinstance(table, str):
        pairs = [pair.partition(PARTS)[::2] for pair in table.split(PAIRS)]
        pairs = [] if len(table.strip()) <= NOTHING else pairs
    elif isinstance(table, Mapping):
        pairs = list(table.items())
    elif isinstance(table, Sequence):
        pairs = [_pair(item) for item in table]
    else:
        raise ValueError(f"is a {type(table).__name__}; write it as {EXAMPLE}")
    return [(_text(key), _text(value)) for key, value in pairs]


def _pair(item) -> tuple:
    if isinstance(item, Mapping) and {"key", "value"} <= item.keys():
        return item["key"], item["value"]
    if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 2:
        raise ValueError(f"has the entry {str(item)[:99]}, which is no pair; write it as {EXAMPLE}")
    return tuple(item)


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value).strip()
    if isinstance(value, Sequence):
        return ", ".join(map(_text, value))
    raise ValueError(f"has the value {str(value)[:100]}, which is no text; write it as {EXAMPLE}")
