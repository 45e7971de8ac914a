"""A page about a run, `report.html`: numbers, examples, curves, speed, config; in one file.

It shows what there is: a run without a checkpoint, without held-out data or in the middle of
training gets a page too, which says what is missing.
"""

import importlib.metadata
import platform
import shlex
import sys

from etils import epath
from flax.traverse_util import flatten_dict
import jax
import jinja2

import albef_jax
from albef_jax.config import borders
from albef_jax.core.build import build
from albef_jax.errors import UserError, first_line
from albef_jax.evaluators import KINDS, evaluator_class, make_evaluators
from albef_jax.evaluators.base import Evaluator, Forward
from albef_jax.files import write
from albef_jax.parallel.mesh import make_mesh, replicated, use_compile_cache
from albef_jax.report import panels
from albef_jax.report.examples import find_examples
from albef_jax.report.history import read_curves, read_history
from albef_jax.run.restore import mesh_of, read_tokenizer, restore_parts
from albef_jax.run.stages import first_metrics
from albef_jax.run.workdir import read_config
from albef_jax.tasks import task_class

TEMPLATES = str(epath.Path(__file__).parent)


def report(workdir, against=()):
    """Writes `WORKDIR/report.html` from the latest checkpoint and the log; returns its path.

    Args:
      workdir: of the run. against: work directories and CSV files whose curves are drawn under its
        own, see `history.read_curves`.

    Raises:
      UserError: there is no run in the work directory, curves cannot be read, or the page cannot be
        written.
    """
    workdir, others = epath.Path(workdir), {}
    for path in map(epath.Path, against):
        others |= read_curves(path)
    config = read_config(workdir)
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    evaluators, forward, teacher, problems = {}, None, None, []
    try:
        evaluators = make_evaluators(config, read_tokenizer(workdir, config), problems)
        parts = build(config, mesh_of(config))
        restored, _ = restore_parts(workdir, parts, ("params", "teacher"))
        forward = Forward(restored["params"], parts.task.predict_fns(), parts.mesh)
        teacher = restored["teacher"]
    except UserError as error:
        problems.append(str(error))
    return write_page(workdir, config, evaluators, forward, teacher, problems, others)


def report_at_end(workdir, config, evaluators, forward, teacher):
    """Writes the page of a run that has just ended, and says where; every process calls it.

    The run is over and saved: whatever goes wrong here is told in a line and nothing more. Of
    several processes the first makes the page alone.

    Args:
      evaluators: of the run, by name. forward: the `Forward` of the last evaluation, or None.
      teacher: the momentum copy of a part of its parameters; may be empty.
    """
    try:
        if forward and jax.process_count() > 1:
            forward, teacher = of_this_process(forward, teacher)
        if jax.process_index():
            return
        line = f"the report is {write_page(workdir, config, evaluators, forward, teacher)}"
    except (Exception, KeyboardInterrupt) as error:
        line = f"no report was written ({first_line(error)}); `albef report {workdir}` tries again"
    print(line, file=sys.stderr, flush=True)


def of_this_process(forward, teacher):
    """A `Forward`, with what it keeps, and a teacher on the devices of the process; all call it."""
    mesh = make_mesh(devices=jax.local_devices())

    def here(array):
        if not isinstance(array, jax.Array):
            return array
        return jax.make_array_from_single_device_arrays(
            array.shape, replicated(mesh), [shard.data for shard in array.addressable_shards])

    whole = jax.jit(lambda trees: trees, out_shardings=replicated(forward.mesh))
    params, teacher = jax.tree.map(here, whole((forward.params, teacher)))
    local = Forward(params, forward.functions, mesh)
    local.kept = {key: jax.tree.map(here, arrays) for key, arrays in forward.kept.items()}
    return local, teacher


def write_page(workdir, config, evaluators, forward, teacher, problems=(), others=None):
    """Renders `WORKDIR/report.html`, or raises a UserError, and returns its path.

    Args:
      workdir, config: of the run. evaluators: those that can be used, by name.
      forward: of its parameters, or None. teacher: the momentum copy of a part of them, or None.
      problems: sentences about what cannot be shown. others: see `panels.loss_panels`.
    """
    rows, classes = read_history(workdir / "metrics.jsonl"), classes_of(config, evaluators)
    task, measured = task_class(config.task), panels.tables(rows, workdir, classes)
    momentum = forward.with_params({**forward.params, **teacher}) if forward and teacher else None
    begins = [*borders(config).items()]
    environment = templates()
    environment.filters["short"] = lambda value: f"{value:.3g}"
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1f}"
    page = environment.get_template("template.html").render(
        name=workdir.resolve().name, version=albef_jax.__version__,
        facts=facts(rows, config, task, forward), tables=measured,
        headline=panels.headline(measured, classes, evaluators),
        examples=find_examples([evaluators[name] for name in classes if name in evaluators],
                               forward, momentum, problems),
        plateaus=panels.plateaus(rows, first_metrics(config), config.steps),
        curves=panels.loss_panels(rows, first_metrics(config), begins, others)
        + panels.evaluation_panels(rows, classes, begins, others),
        speed=panels.speed_panels(rows, config, begins), wall_time=panels.wall_time(rows),
        config=config_blocks(config),
        environment=software(), commands=commands(workdir))
    path = workdir / "report.html"
    try:
        write(path, page)
    except OSError as error:
        raise UserError(f"The report {path} cannot be written ({error.strerror}); make room or "
                        "mend the cause.") from error
    return path


def templates():
    """The templates of pages, for texts that nobody has checked."""
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True,
                              undefined=jinja2.StrictUndefined)


def classes_of(config, evaluators):
    """The class of each evaluator of a config, in the order of the page."""
    kinds = {name: block.get("kind") for name, block in config.evals.items()}
    places = {kind: place for place, kind in enumerate(KINDS)}

    def of(name):
        try:
            return type(evaluators[name]) if name in evaluators else evaluator_class(kinds[name])
        except UserError:  # the page says it elsewhere, and shows the values as all would
            return Evaluator

    ordered = sorted(kinds, key=lambda name: places.get(kinds[name], len(places)))
    return {name: of(name) for name in ordered}


def facts(rows, config, task, forward):
    """What the run is, in a few words each."""
    done = rows[-1][0] if rows else 0
    steps = f"{done:,} of {config.steps:,} steps" + ", unfinished" * (done < config.steps)
    count = sum(leaf.size for leaf in jax.tree.leaves(forward.params)) if forward else 0
    return [steps, f"batch {config.batch_size:,}",
            *([f"{count / 1e6:.1f} M parameters"] if count else []), *task.facts(config)]


def config_blocks(config):
    """The config as blocks with dotted keys: dicts with `name` and `entries`."""
    values = config.to_dict()
    run = {key: value for key, value in values.items() if not isinstance(value, dict)}
    blocks = {"run": run} | {key: value for key, value in values.items() if key not in run}

    def is_leaf(path, value):
        return path and not value  # an empty block within a block

    return [{"name": name, "entries": [
        (key, repr(value)) for key, value in flatten_dict(block, sep=".", is_leaf=is_leaf).items()]}
            for name, block in blocks.items()]


def software():
    """Versions and devices: pairs of name and text."""
    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return [("devices", f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"),
            *versions.items(), ("Python", platform.python_version()),
            ("system", platform.platform(terse=True))]


def commands(workdir):
    """What can be done with the run: command lines."""
    run = shlex.quote(str(workdir))
    return [f"albef evaluate {run}", f"albef report {run}", f"tensorboard --logdir {run}"]
