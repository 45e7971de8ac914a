"""Which charts and numbers a page shows, from what the run logged."""

import math

import numpy as np

from albef_jax.report.charts import line_chart
from albef_jax.report.history import curve, latest_values
from albef_jax.tasks import task_class

DEPTHS = (1, 5, 10)
ACCURACIES = (("matching", "itm_accuracy_hard", "hard negatives", 0),
              ("matching", "itm_accuracy_random", "random negatives", 1),
              ("masked", "mlm_top1", "words, top 1", 2), ("masked", "mlm_top5", "top 5", 3))
# Values of evaluators with a right answer for each example, and their names on a chart.
ANSWERS = {"classification": (("accuracy", "accuracy"), ("consistency", "consistency")),
           "vqa": (("vqa_accuracy", "VQA accuracy"), ("exact_match", "exact match")),
           "grounding": (("pointing_game", "pointing game"), ("iou_0.5", "right proposal"))}
# Of one positive and two negatives, the loss of knowing nothing but this share.
ITM_BLIND = math.log(3) - 2 / 3 * math.log(2)


def loss_panels(rows, config):
    """The losses, as far as they were logged; of a task with a single one, its accuracy too."""
    candidates = config.group_size + config.objective.queue_size
    classes = getattr(task_class(config), "classes", None)
    alone = [] if len(curve(rows, "itc")[0]) else [
        _panel("Loss", [_line(rows, "loss", "loss")], smooth=True,
               reference=classes and math.log(classes),
               note=f"dashed: all {classes} classes alike" if classes else ""),
        _panel("Accuracy in training, %", [_share(rows, name, "accuracy")
                                           for name in ("accuracy", "answer_accuracy")],
               smooth=True, floor=0, top=100)]
    return _drawn(
        *alone,
        _panel("Contrastive loss (ITC)", [_line(rows, "itc", "ITC")], smooth=True,
               reference=math.log(candidates),
               note=f"dashed: all {candidates:,} candidates alike"),
        _panel("Matching loss (ITM)", [_line(rows, "itm", "ITM")], smooth=True,
               reference=ITM_BLIND, note="dashed: “no match” for every pair"),
        _panel("Masked-word loss (MLM)", [_line(rows, "mlm", "MLM")], smooth=True))


def evaluation_panels(rows, evals):
    """Held-out values over steps: recall both ways, accuracies, matching and masked words."""
    panels = []
    for name, block in evals.items():
        if block.get("kind") in ANSWERS:
            majority = curve(rows, f"{name}/majority")[1]
            panels.append(_panel(
                f"Held-out {name}, %",
                [_line(rows, f"{name}/{key}", label, colour)
                 for colour, (key, label) in enumerate(ANSWERS[block["kind"]])],
                floor=0, top=100, reference=majority[-1] if len(majority) else None,
                note="dashed: always the commonest answer" if len(majority) else ""))
    for name in names_of(evals, "retrieval")[:1]:
        for way, title in (("i2t", "Image to text"), ("t2i", "Text to image")):
            lines = [_line(rows, f"{name}/{prefix}{way}_r{depth}", f"R@{depth}", colour=colour,
                           dashed=bool(prefix))
                     for prefix in ("itc_", "") for colour, depth in enumerate(DEPTHS)]
            panels.append(_panel(f"{title}, R@K in %", lines, floor=0,
                                 note="solid: re-ranked, dashed: contrastive alone"))
    accuracies = [_line(rows, f"{name}/{key}", label, colour)
                  for kind, key, label, colour in ACCURACIES
                  for name in names_of(evals, kind)[:1]]
    panels.append(_panel("Matching and masked words, %", accuracies, floor=0, top=100))
    return _drawn(*panels)


def speed_panels(rows, config):
    """Training speed, the share of time spent waiting for data, and the learning rate."""
    speed = _line(rows, "step_time", "samples/s")
    speed["values"] = config.batch_size / speed["values"]
    wait = _share(rows, "data_wait", "waiting") | {"colour": 1}
    return _drawn(_panel("Samples per second", [speed], smooth=True, floor=0),
                  _panel("Waiting for data, % of the time", [wait], smooth=True, floor=0, top=5),
                  _panel("Learning rate", [_line(rows, "lr", "rate")], floor=0))


def names_of(evals, kind):
    """The names of the evaluators of a kind, in the order of the config."""
    return [name for name, block in evals.items() if block.get("kind") == kind]


def tables(rows, workdir, evals):
    """The latest values of every evaluator: dicts with `name`, `kind`, `step` and `values`."""
    measured = [(name, block.get("kind"), *latest_values(rows, workdir, name))
                for name, block in evals.items()]
    found = [{"name": name, "kind": kind, "step": step, "values": values}
             for name, kind, step, values in measured if step is not None]
    return sorted(found, key=lambda table: table["kind"] != "retrieval")  # the wide ones first


def headline(measured):
    """The numbers on top, of what was measured: dicts with `label`, `value`, `kind`,
    and what it was `before` re-ranking."""
    wanted = (("retrieval", "t2i_r1", "text to image, R@1"),
              ("retrieval", "i2t_r1", "image to text, R@1"),
              ("matching", "itm_accuracy_hard", "ITM, hard negatives"),
              ("masked", "mlm_top1", "masked words right"),
              ("classification", "accuracy", "held-out accuracy"),
              ("vqa", "vqa_accuracy", "VQA accuracy"),
              ("grounding", "pointing_game", "pointing game"))
    found = []
    for kind, key, label in wanted:
        table = next((table for table in measured if table["kind"] == kind), None)
        if table and key in table["values"]:
            found.append({"label": label, "value": table["values"][key], "kind": kind,
                          "before": table["values"].get(f"itc_{key}")})
    return found


def _line(rows, name, label, colour=0, dashed=False):
    steps, values = curve(rows, name)
    return {"steps": steps, "values": values, "label": label, "colour": colour, "dashed": dashed}


def _share(rows, name, label):
    """The line of a value between 0 and 1, in percent."""
    line = _line(rows, name, label)
    return line | {"values": 100 * line["values"]}


def _panel(title, lines, note="", **options):
    lines = [line for line in lines if np.isfinite(line["values"]).any()]
    legend = [{"label": line["label"], "colour": line["colour"] + 1,
               "last": line["values"][np.isfinite(line["values"])][-1]}
              for line in lines if not line["dashed"]]
    return {"title": title, "lines": lines, "legend": legend, "note": note, "options": options}


def _drawn(*panels):
    """The panels that have something to show, each with its chart."""
    return [panel | {"svg": line_chart(panel["lines"], **panel["options"])}
            for panel in panels if panel["lines"]]
