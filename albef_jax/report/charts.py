"""Line charts as inline SVG whose colours and fonts are the page's."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

MAX_POINTS = 400  # of a line: more cannot be told apart at the width of a chart
SMOOTH = 0.03  # width of the running mean, as a share of the points
SERIES = ("#0000f1", "#0000f2", "#0000f3", "#0000f4")
TEXT, LINES, REFERENCE = "#0000e1", "#0000e2", "#0000e3"
# Colours that nobody sees: each stands for a variable of the style sheet, light or dark.
VARIABLES = {TEXT: "--muted", LINES: "--line", REFERENCE: "--muted"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "albef", "font.size": 10,
         "axes.edgecolor": LINES, "xtick.color": LINES, "ytick.color": LINES,
         "xtick.labelcolor": TEXT, "ytick.labelcolor": TEXT, "axes.grid": True,
         "grid.color": LINES, "grid.linewidth": 0.6, "lines.solid_capstyle": "round",
         "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
         "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 5}


def line_chart(lines, *, smooth=False, reference=None, floor=None, top=-np.inf, borders=()):
    """Curves over steps, as the text of an `<svg>` element that fills its container.

    Args:
      lines: dicts with `steps` int `[p]`, `values` float `[p]` (NaN leaves a gap), `colour` (0 to
        3, or None for one of another run), and optionally `dashed`.
      smooth: draw the values pale, and their running mean over them.
      reference: height of a dashed line to compare with, or None.
      floor: lowest height, None for that of the data. top: at least this high.
      borders: names of stages and the steps where they begin; each is a line with its name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.3, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line, smooth)
        if reference is not None:
            axes.axhline(reference, color=REFERENCE, linewidth=0.9, dashes=(2, 2))
        axes.set_ylim(floor, max(axes.get_ylim()[1], top))
        for name, step in borders:
            axes.axvline(step, color=REFERENCE, linewidth=0.9)
            axes.annotate(name, (step, 1), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", color=TEXT, fontsize=8)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(tick)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue())


def colour_of(number):
    """The style sheet's colour of a line; see `line_chart`."""
    return f"var({VARIABLES[REFERENCE if number is None else SERIES[number]]})"


def tick(value, position=None):
    """A number on the axis, short: 0.00045 as 4.5e-4."""
    del position  # part of matplotlib's signature
    small = 0 < abs(value) < 1e-3
    return f"{value:.1e}".replace("e-0", "e-") if small else f"{value:.3g}"


def _draw(axes, line, smooth):
    steps, values = thin(line["steps"], line["values"])
    if line["colour"] is None:
        axes.plot(steps, running_mean(values) if smooth else values, color=REFERENCE,
                  linewidth=1.2, marker="o" if len(steps) <= 25 else None, markersize=2)
        return
    style = {"color": SERIES[line["colour"]], "linewidth": 1.6,
             "dashes": (3, 2) if line.get("dashed") else (None, None)}
    if smooth:
        axes.plot(steps, values, **style | {"linewidth": 0.8, "alpha": 0.35})
        values = running_mean(values)
    axes.plot(steps, values, marker="o" if len(steps) <= 25 else None, markersize=3, **style)


def thin(steps, values):
    """At most `MAX_POINTS` of the points: means over blocks of neighbours; gaps stay gaps."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    blocks = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return (np.array([steps[block[-1]] for block in blocks]),
            np.array([_mean(values[block]) for block in blocks]))


def running_mean(values):
    """The mean of each value and its neighbours on both sides; gaps stay gaps."""
    reach = int(SMOOTH * len(values))
    means = [_mean(values[max(i - reach, 0):i + reach + 1]) for i in range(len(values))]
    return np.where(np.isfinite(values), means, np.nan)


def _mean(values):
    finite = values[np.isfinite(values)]
    return finite.mean() if len(finite) else np.nan


def _inline(svg):
    """The element alone: no prologue, metadata, size or colours of its own."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', svg)
    svg = re.sub(r' id="(figure|axes|patch|matplotlib|xtick|ytick|line2d|text)[^"]*"', "", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
