"""What a run logged: its scalars over steps, and the latest values of its evaluators."""

import json

import numpy as np


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
