"""Measured values as a person reads them in a terminal."""

from collections.abc import Mapping
import re

# A metric of a direction or subset, at a depth; of so many candidates.
RANKED = re.compile(r"(.+)_(r|map|prec)(\d+)(@\d+)?")
TITLES = {"r": "R@", "map": "mAP@", "prec": "Prec@"}


def values_table(heading: str, values: Mapping[str, float]) -> str:
    """A line per value under a heading; a metric at several depths shares a line.

    Args:
      heading: what was measured, on what.
      values: name -> percent; `i2t_r1` is the recall at 1 of `i2t`, `i2t_r1@16` with 16 candidates.
    """
    rows, depths = {}, {}
    for name, value in values.items():
        ranked = RANKED.fullmatch(name)
        row, metric, depth, candidates = ranked.groups("") if ranked else (name, "", "", "")
        column = metric + depth
        rows.setdefault(row + candidates, {})[column] = value
        if ranked:
            depths[column] = TITLES[metric] + depth
    width = max(map(len, rows), default=0)
    lines = [heading]
    if depths:
        lines.append(f"  {'':<{width}}" + "".join(f"  {title:>6}" for title in depths.values()))
    for row, cells in rows.items():
        columns = depths if depths.keys() & cells.keys() else {column: "" for column in cells}
        lines.append((f"  {row:<{width}}" + "".join(
            "  " + (f"{cells[column]:.2f}" if column in cells else "").rjust(max(6, len(title)))
            for column, title in columns.items())).rstrip())
    return "\n".join(lines)


def evaluation_tables(step: int, measured: Mapping[str, float]) -> str:
    """The tables of an evaluation inside training, after so many steps.

    `measured`: `evaluator/name` -> percent.
    """
    blocks = {}
    for path, value in measured.items():
        evaluator, name = path.split("/", 1)
        blocks.setdefault(evaluator, {})[name] = value
    return "\n".join(values_table(f"{evaluator} at step {step}", values)
                     for evaluator, values in blocks.items())


def aligned(rows, indent: int = 0) -> str:
    """Rows of equally many cells as lines: numbers to the right, other cells to the left.

    `indent`: spaces before each line.
    """
    def is_number(cell):
        return str(cell).replace(".", "").isdigit()

    columns = list(zip(*rows))
    widths = [max(len(str(cell)) for cell in column) for column in columns]
    right = [all(map(is_number, column[1:])) and len(column) > 1 for column in columns]
    return "\n".join((" " * indent + "  ".join(
        f"{cell:>{width}}" if number else f"{cell:<{width}}"
        for cell, width, number in zip(row, widths, right))).rstrip() for row in rows)
