"""A page about a run, `report.html`: numbers, examples, curves, speed, config; in one file.

It needs no network and no other file, and shows what there is: a run without a checkpoint, without
held-out data or in the middle of training gets a page too, which says what is missing.
"""

import importlib.metadata
import platform
import shlex
import sys

from etils import epath
import jax
import jinja2

import albef_jax
from albef_jax.data.text import load_tokenizer
from albef_jax.errors import UserError
from albef_jax.run.restore import mesh_of, restore_state
from albef_jax.report import panels
from albef_jax.report.examples import Examples
from albef_jax.report.heat import find_heat
from albef_jax.report.history import read_history
from albef_jax.report.rows import find_rows
from albef_jax.parallel.mesh import make_mesh, replicated, use_compile_cache
from albef_jax.tasks import make_task
from albef_jax.run.workdir import read_config

TEMPLATES = str(epath.Path(__file__).parent)
LABELS = {"itm_accuracy_random": "random negatives", "itm_accuracy_hard": "hard negatives",
          "mlm_top1": "masked words, top 1", "mlm_top5": "masked words, top 5",
          "mlm_top1_words": "chosen words, top 1",
          "majority": "always the commonest answer",
          "majority_per_type": "always the commonest of its type",
          "consistency": "sentences right throughout", "vqa_accuracy": "VQA accuracy",
          "exact_match": "exact match",
          "pointing_game": "middle of the hottest patch lies in the box",
          "pointing_centre": "middle of the image lies in the box",
          "pointing_random": "random place lies in the box", "iou_0.5": "right proposal (IoU 0.5)",
          "iou_0.5_random": "random proposal (IoU 0.5)"}


def report(workdir):
    """Writes `WORKDIR/report.html` from the latest checkpoint and the log; returns its path.

    Raises:
      UserError: there is no run in the work directory, or the page cannot be written.
    """
    workdir = epath.Path(workdir)
    config = read_config(workdir)
    use_compile_cache()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    return write_page(workdir, config, examples_of_checkpoint(workdir, config))


def report_at_end(workdir, config, tokenizer, state, predict_fns, mesh):
    """Writes the page of a run that has just ended, and says where; every process calls it.

    The run is over and saved: whatever goes wrong here is told in a line and nothing more. Of
    several processes the first makes the page alone.
    """
    try:
        params, teacher = state.params, state.teacher
        if jax.process_count() > 1:
            params, teacher = local_copies((params, teacher), mesh)
            mesh = make_mesh(devices=jax.local_devices())
        if jax.process_index():
            return
        examples = find_examples(config, tokenizer, params, teacher, predict_fns, mesh)
        line = f"the report is {write_page(workdir, config, examples)}"
    except (Exception, KeyboardInterrupt) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        line = f"no report was written ({reason}); `albef report {workdir}` tries again"
    print(line, file=sys.stderr, flush=True)


def local_copies(tree, mesh):
    """The arrays of a tree on `mesh`, whole on each device of this process; every one calls it."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    here = replicated(make_mesh(devices=jax.local_devices()))
    return jax.tree.map(lambda x: jax.make_array_from_single_device_arrays(
        x.shape, here, [shard.data for shard in x.addressable_shards]), whole)


def examples_of_checkpoint(workdir, config):
    """The examples of the latest checkpoint, or the sentence that says why there are none."""
    mesh, task = mesh_of(config), make_task(config)
    try:
        if not (workdir / "tokenizer").is_dir():
            raise UserError(f"{workdir} has no folder tokenizer; copy it from where the run was "
                            "trained.")
        tokenizer = load_tokenizer(str(workdir / "tokenizer"))
        state, _ = restore_state(workdir, config, task, mesh)
    except UserError as error:
        return {"missing": str(error)}
    return find_examples(config, tokenizer, state.params, state.teacher, task.predict_fns(), mesh)


def find_examples(config, tokenizer, params, teacher, predict_fns, mesh):
    """Examples of the evaluators' data, as plain values for the template.

    Returns:
      dict: `rows` (see `report.rows`) of tasks with classes or answers, else what `Examples` finds
      in the data of the first retrieval evaluator; only `missing`, a sentence, where the held-out
      data cannot be used. Beside them `heat` (see `report.heat`) of tasks with a matching head.
    """
    examples = find_rows_or_queries(config, tokenizer, params, teacher, predict_fns, mesh)
    try:
        heat = find_heat(config, tokenizer, params) if "itm_heat" in predict_fns else None
    except UserError:  # which the examples beside it tell
        heat = None
    return examples | ({"heat": heat, "parameters": count_of(params)} if heat else {})


def find_rows_or_queries(config, tokenizer, params, teacher, predict_fns, mesh):
    """As `find_examples`, without heat maps."""
    try:
        answered = find_rows(config, tokenizer, params, predict_fns)
    except UserError as error:
        return {"missing": str(error)}
    if answered:
        return {"rows": answered, "parameters": count_of(params)}
    names = panels.names_of(config.evals, "retrieval")
    if not names:
        return {"missing": "config.evals has no block of kind 'retrieval', 'vqa' or "
                           "'classification', whose held-out examples would be shown here."}
    try:
        shown = Examples(config.evals[names[0]], config, tokenizer, params, teacher, predict_fns,
                         mesh)
    except UserError as error:
        return {"missing": str(error)}
    text_queries, image_queries = shown.queries()
    return {"k": shown.k, "ranked": shown.ranked, "num_images": shown.data.num_images,
            "num_texts": len(shown.data.texts),
            "parameters": count_of(params),
            "text_queries": text_queries, "image_queries": image_queries,
            "words": shown.words(chosen_words(config.evals)),
            "pseudo_targets": shown.pseudo_targets()}


def count_of(params):
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def chosen_words(evals):
    """The words that a 'masked' evaluator asks for by themselves; () if none does."""
    blocks = [evals[name] for name in panels.names_of(evals, "masked")]
    return next((tuple(block.words) for block in blocks if block.get("words")), ())


def write_page(workdir, config, examples):
    """Renders `WORKDIR/report.html`, complete or not at all, and returns its path.

    Args:
      workdir: of the run. config: of the run. examples: from `find_examples`.

    Raises:
      UserError: the work directory cannot be written.
    """
    rows = read_history(workdir / "metrics.jsonl")
    measured = panels.tables(rows, workdir, config.evals)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters.update(percent=percent, short=lambda value: f"{value:.3g}", label=label)
    page = environment.get_template("template.html").render(
        name=workdir.resolve().name, version=albef_jax.__version__,
        facts=facts(rows, config, examples), tables=measured,
        headline=panels.headline(measured), examples=examples,
        heat=examples.get("heat"),
        chance=chances(examples, measured),
        curves=panels.loss_panels(rows, config) + panels.evaluation_panels(rows, config.evals),
        speed=panels.speed_panels(rows, config), config=config_blocks(config),
        environment=software(), commands=commands(workdir))
    path, unfinished = workdir / "report.html", workdir / "report.html.unfinished"
    try:
        unfinished.write_bytes(page.encode())
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"The report {path} cannot be written ({error.strerror}); make room or "
                        "mend the cause.") from error
    return path


def facts(rows, config, examples):
    """What the run is, in a few words each."""
    done = rows[-1][0] if rows else 0
    m = config.model
    size = [f"{examples['parameters'] / 1e6:.1f} M parameters"] if "parameters" in examples else []
    steps = f"{done:,} of {config.steps:,} steps" + ", unfinished" * (done < config.steps)
    return [steps, f"batch {config.batch_size:,}", *size, f"{m.image_size} px images",
            f"{m.vit_depth} image, {m.text_layers} text and {m.fusion_layers} fusion layers",
            m.dtype]


def chances(examples, measured):
    """What guessing would give, by kind of evaluator, as far as it is known."""
    images = examples.get("ranked")
    blind = {table["kind"]: f"always the commonest: {table['values']['majority']:.1f}%"
             for table in measured if table["values"].get("majority") is not None}
    boxes = [table["values"] for table in measured if table["kind"] == "grounding"]
    if boxes:
        blind["grounding"] = (f"the middle of the image: {boxes[0]['pointing_centre']:.1f}%, "
                              f"a random place: {boxes[0]['pointing_random']:.1f}%")
    return {"retrieval": f"guessing: {100 / images:.2g}%" if images else "",
            "matching": "guessing: 50%", "masked": "first guess of the whole vocabulary",
            **blind}


def label(name):
    """A value's name as a person reads it."""
    return LABELS.get(name, name.replace("accuracy_", "accuracy: ").replace("_", " "))


def config_blocks(config):
    """The config as blocks with dotted keys: dicts with `name` and `entries`."""
    values = config.to_dict()
    run = {key: value for key, value in values.items() if not isinstance(value, dict)}
    blocks = {"run": run} | {key: value for key, value in values.items() if key not in run}
    return [{"name": name, "entries": list(_flat(block))} for name, block in blocks.items()]


def _flat(block, prefix=""):
    for key, value in block.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, repr(value)


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


def percent(value):
    """A share in percent as text; what was not measured is a dash."""
    return "–" if value is None else f"{value:.1f}"
