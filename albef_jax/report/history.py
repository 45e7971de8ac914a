"""What a run logged: its scalars over steps, and the latest values of its evaluators."""

import csv
import json

import numpy as np

from albef_jax.errors import UserError
from albef_jax.files import read_bytes

NAME, STEP = "run", "step"  # columns of a file of curves that are no scalar


def read_history(path):
    """Reads metrics.jsonl into rows `(step, name -> value)` in order of the steps.

    A run that went back to an earlier step overwrites what it had logged after that step. Half a
    line, which a kill may leave, is skipped. A value that was not finite is None.
    """
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            step = values.pop("step")
        except ValueError:
            continue
        while rows and rows[-1][0] > step:
            rows.pop()
        rows.append((step, values))
    return rows


def read_curves(path):
    """The curves that a page is compared with: a label for each, and its rows as of `read_history`.

    Args:
      path: a work directory (epath), or a CSV file with a column `step`, one for each scalar, named
        as in metrics.jsonl, empty where there is no value, and `run` where it holds several.

    Raises:
      UserError: there is no log or no such file, or it is none.
    """
    if path.is_dir():
        rows = read_history(path / "metrics.jsonl")
        if not rows:
            raise UserError(f"--against {path} has no metrics.jsonl with rows; give the work "
                            "directory of a run that has logged steps, or a CSV file.")
        return {path.resolve().name: rows}
    curves = {}
    try:
        lines = csv.DictReader(read_bytes(path).decode().splitlines())
        for number, line in enumerate(lines, start=2):
            name, step = line.pop(NAME, None) or path.stem, line.pop(STEP, None)
            values = {scalar: float(value) for scalar, value in line.items() if value}
            curves.setdefault(name, []).append((int(step), values))
    except OSError as error:
        raise UserError(f"--against {path} cannot be read ({error.strerror or error}); give a work "
                        "directory or a CSV file of curves, such as docs/curves/demo.csv.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"--against {path} is no file of curves (line {number}: {error}); it needs "
                        "a column step, and numbers in the others.") from None
    if not curves:
        raise UserError(f"--against {path} holds no curves; it needs a line with the names of its "
                        "columns, step among them, and a line for each step.")
    return {name: sorted(rows, key=lambda row: row[0]) for name, rows in curves.items()}


def curve(rows, name):
    """Steps int `[p]` and values float `[p]` of one scalar; None becomes NaN."""
    points = {step: values[name] for step, values in rows if name in values}
    return np.array(list(points), int), np.array(list(points.values()), float)


def latest_values(rows, workdir, evaluator):
    """The step (None if there is none) and newest values by name of an evaluator.

    They are those of the log, or of `results/<evaluator>.json` where that is of a later step.
    """
    newest, prefix = (None, {}), f"{evaluator}/"
    for step, values in rows:
        own = {name.removeprefix(prefix): value for name, value in values.items()
               if name.startswith(prefix) and value is not None}
        newest = (step, own) if own else newest
    path = workdir / "results" / f"{evaluator}.json"
    if path.exists():
        result = json.loads(path.read_text())
        if newest[0] is None or result["step"] > newest[0]:
            newest = result["step"], result["values"]
    return newest
