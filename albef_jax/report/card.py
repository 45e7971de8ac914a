"""A model card's section about the run: data, steps, figures, curves, in Markdown."""

import io

import matplotlib
from matplotlib.figure import Figure

from albef_jax.config import stages_of
from albef_jax.report.charts import running_mean
from albef_jax.report.history import curve, read_history
from albef_jax.run.stages import first_metrics
from albef_jax.run.tables import evaluation_tables

CURVES = "curves.png"


def section(workdir, config) -> str:
    """What a run was trained on, for how long, and what was measured last."""
    rows = read_history(workdir / "metrics.jsonl")
    lines = ["## The run", ""]
    for name, own in stages_of(config):
        stage = f"stage `{name}`: " if name else ""
        lines.append(f"- {stage}{own.steps:,} steps of {own.batch_size:,} on `{_data(own)}`")
    if rows:
        lines.append(f"- step {rows[-1][0]:,} of {config.steps:,} reached")
    lines += ["", "Every value of its config is in `config.json`.", ""]
    if measured := _measured(rows):
        lines += ["Measured on held-out data, percent:", "", "```",
                  *(evaluation_tables(step, values) for step, values in measured.items()),
                  "```", ""]
    if rows:
        lines += [f"![Losses over steps]({CURVES})", ""]
    return "\n".join(lines)


def curves_png(workdir, config) -> bytes | None:
    """The logged losses over steps, as a picture; None if none was logged."""
    rows = read_history(workdir / "metrics.jsonl")
    shown = [(one, *curve(rows, one.name)) for one in first_metrics(config) if one.title]
    shown = [(one, steps, values) for one, steps, values in shown if len(steps)]
    if not shown:
        return None
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4 * len(shown), 2.6), layout="constrained", dpi=120)
        for axes, (one, steps, values) in zip(figure.subplots(1, len(shown), squeeze=False)[0],
                                              shown):
            axes.plot(steps, values, linewidth=0.7, alpha=0.35, color="tab:blue")
            axes.plot(steps, running_mean(values), color="tab:blue")
            axes.set(title=one.title, xlabel="step")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _data(config):
    """Kind and names of the data of a stage; names of files alone, as folders are nobody's."""
    source = config.data.source
    files = [str(file).rpartition("/")[2] for file in source.get("files", ())]
    size = [f"{source.size:,} examples"] if "size" in source else []
    return ", ".join([str(source.kind).rpartition("/")[2], *files, *size])


def _measured(rows):
    """Step -> `evaluator/name` -> value: of every evaluator the last values."""
    newest = {}
    for step, values in rows:
        for name, value in values.items():
            if "/" in name and value is not None:
                newest[name] = step, value
    found = {}
    for name, (step, value) in newest.items():
        found.setdefault(step, {})[name] = value
    return found
