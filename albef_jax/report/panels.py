"""Which charts and numbers a page shows, from what the run logged."""

import time

import numpy as np

from albef_jax.report.charts import SERIES, colour_of, line_chart
from albef_jax.report.history import curve, latest_values
from albef_jax.run.goodput import PARTS, starts_of
from albef_jax.run.metrics import duration
from albef_jax.run.plateau import Plateaus

# In the order of a bar: what the run is for comes first.
PART_COLOURS = {
    "steps": "var(--series-1)", "data": "var(--series-2)", "evaluation": "var(--series-3)",
    "saves": "var(--series-4)", "start": "var(--muted)", "restore": "var(--muted)",
    "compile": "color-mix(in srgb, var(--muted) 60%, transparent)", "lost": "var(--ink)"}


def loss_panels(rows, shown, borders=(), others=None):
    """The metrics of a task (see `tasks.base.Shown`) that have a chart and were logged.

    Here and below `borders` are of stages, see `charts.line_chart`; `others` the rows of other runs
    by their labels, drawn under this one's.
    """
    panels = []
    for one in shown:
        scale, options = (100, {"floor": 0, "top": 100}) if one.share else (1, {})
        reference = None if one.blind is None else scale * one.blind
        lines = [*_of_others(others, one.name, scale),
                 _line(rows, one.name, one.label, scale=scale)]
        panels.append(_panel(one.title, lines, one.note, smooth=True, reference=reference,
                             **options))
    return _drawn(*(panel for panel in panels if panel["title"]), borders=borders)


def plateaus(rows, shown, total_steps):
    """Sentences about losses that the last logged steps of a run leave where they began."""
    watch = Plateaus(shown, total_steps)
    for step, values in rows:
        watch.add(step, values)
    return watch.sentences


def evaluation_panels(rows, classes, borders=(), others=None):
    """The charts of evaluators over steps; those of one title are one, of one class the first's.

    `classes`: name of an evaluator -> its class.
    """
    seen, parts = set(), {}
    for name, kind in classes.items():
        for chart in kind.charts:
            title = chart.title.replace("{name}", name)
            if (kind, title) not in seen:
                seen.add((kind, title))
                parts.setdefault(title, []).append((name, chart))
    return _drawn(*(_evaluation_panel(rows, title, charts, others)
                    for title, charts in parts.items()), borders=borders)


def _evaluation_panel(rows, title, parts, others):
    lines, notes, reference = [], [], None
    for name, chart in parts:
        lines += [line for value in chart.lines for line in _of_others(others, f"{name}/{value}")]
        for values, dashed in ((chart.dashed, True), (chart.lines, False)):
            lines += [_line(rows, f"{name}/{value}", chart.lines.get(value, ""),
                            (chart.colour + number) % len(SERIES), dashed)
                      for number, value in enumerate(values)]
        blind = curve(rows, f"{name}/{chart.blind}")[1]
        reference = blind[-1] if len(blind) else reference
        notes += [chart.note] if len(blind) or not chart.blind else []
    least = min((np.nanmin(line["values"], initial=0) for line in lines), default=0)
    return _panel(title, lines, " ".join(filter(None, notes)), reference=reference,
                  floor=None if least < 0 else 0, top=max(chart.top for _, chart in parts))


def speed_panels(rows, config, borders=()):
    """Training speed, the share of time spent waiting for data, and the learning rate."""
    speed = _line(rows, "step_time", "samples/s")
    speed["values"] = config.batch_size / speed["values"]
    wait = _line(rows, "data_wait", "waiting", colour=1, scale=100)
    return _drawn(_panel("Samples per second", [speed], smooth=True, floor=0),
                  _panel("Waiting for data, % of the time", [wait], smooth=True, floor=0, top=5),
                  _panel("Learning rate", [_line(rows, "lr", "rate")], floor=0),
                  borders=borders)


def wall_time(rows):
    """Where the wall time of a run went, all starts together and each; None where no line says.

    A dict with `title` and `bars`, each with its `title` and `parts`: `name`, `text`, `share` in
    percent and `colour`.
    """
    starts = starts_of(rows)
    if not starts:
        return None
    sums = {part: sum(start.seconds.get(part, 0.0) for start in starts) for part in PARTS}
    total, useful = sum(sums.values()), sums["steps"]
    bars = [_time_bar("all together", sums, total)]
    if len(starts) > 1:
        bars += [_time_bar(
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(start.began))}, steps "
            f"{start.first:,} to {start.last:,}", start.seconds, total) for start in starts]
    count = f"{len(starts)} start" + "s" * (len(starts) > 1)
    return {"title": f"{duration(total)} in {count}, {100 * useful / total:.0f}% of it in steps "
                     "that are part of the run", "bars": bars}


def _time_bar(title, seconds, total):
    return {"title": f"{title}: {duration(sum(seconds.values()))}", "parts": [
        {"name": PARTS[part], "text": duration(value), "share": 100 * value / total,
         "colour": PART_COLOURS[part]}
        for part in PART_COLOURS if (value := seconds.get(part, 0.0))]}


def tables(rows, workdir, classes):
    """The latest values of every evaluator, the wide tables first.

    dicts with `name`, `step`, `values` and `layout` (a `evaluators.base.Table`).
    """
    found = []
    for name, kind in classes.items():
        step, values = latest_values(rows, workdir, name)
        if step is not None:
            found.append({"name": name, "step": step, "values": values,
                          "layout": kind.table(values)})
    return sorted(found, key=lambda table: -len(table["layout"].groups))


def headline(measured, classes, evaluators):
    """The numbers on top, of one class the first evaluator's that was measured.

    dicts with `label`, `value` and `beneath`, lines of text. `measured` is from `tables`;
    `evaluators`, by name, are those that could be made.
    """
    tiles, seen = [], set()
    for name, values in ((table["name"], table["values"]) for table in measured):
        kind = classes[name]
        if kind not in seen:
            seen.add(kind)
            tiles += [{"label": label, "value": values[value], "beneath":
                       evaluators[name].beneath(value, values) if name in evaluators else []}
                      for value, label in kind.headline.items() if value in values]
    return tiles


def _line(rows, name, label, colour=0, dashed=False, scale=1):
    steps, values = curve(rows, name)
    return {"steps": steps, "values": scale * values, "label": label, "colour": colour,
            "dashed": dashed}


def _of_others(others, name, scale=1):
    """The lines of a scalar of other runs; see `loss_panels`."""
    return [_line(rows, name, label, colour=None, scale=scale)
            for label, rows in (others or {}).items()]


def _panel(title, lines, note="", **options):
    lines = [line for line in lines if np.isfinite(line["values"]).any()]
    if all(line["colour"] is None for line in lines):
        lines = []  # others are there to be compared with
    legend = [{"label": line["label"], "colour": colour_of(line["colour"]),
               "last": line["values"][np.isfinite(line["values"])][-1]}
              for line in lines if not line["dashed"]]
    return {"title": title, "lines": lines, "legend": legend, "note": note, "options": options}


def _drawn(*panels, borders):
    """The panels that have something to show, each with its chart."""
    return [panel | {"svg": line_chart(panel["lines"], borders=borders, **panel["options"])}
            for panel in panels if panel["lines"]]
