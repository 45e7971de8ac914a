"""Measured values as a person reads them in a terminal."""

from collections.abc import Mapping
import re

RECALL = re.compile(r"(.+)_r(\d+)(@\d+)?")  # of a direction, at a depth; of so many candidates


def values_table(heading: str, values: Mapping[str, float]) -> str:
    """A line per value under a heading; recalls at several depths share a line.

    Args:
      heading: what was measured, on what.
      values: name -> percent; `i2t_r1` is the recall at 1 of `i2t`, `i2t_r1@16` with 16 candidates.
    """
    rows, depths = {}, {}
    for name, value in values.items():
        recall = RECALL.fullmatch(name)
        row, column, candidates = recall.groups("") if recall else (name, "", "")
        row += candidates
        rows.setdefault(row, {})[column] = value
        if recall:
            depths[column] = f"R@{column}"
    width = max(map(len, rows), default=0)
    lines = [heading]
    if depths:
        lines.append(f"  {'':<{width}}" + "".join(f"  {title:>6}" for title in depths.values()))
    for row, cells in rows.items():
        columns = depths if depths.keys() & cells.keys() else cells
        lines.append(f"  {row:<{width}}" + "".join(f"  {cells[c]:6.2f}" for c in columns))
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
