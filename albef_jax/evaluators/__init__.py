"""Evaluators by kind. Others are named by their class; see `evaluators.base.Evaluator`."""

from collections.abc import Mapping
import re

from ml_collections import ConfigDict

from albef_jax.data.fields import check_fields
from albef_jax.data.sources import check_source, make_source
from albef_jax.errors import UserError, shown, wanted
from albef_jax.evaluators.base import Evaluator
from albef_jax.files import find_class
from albef_jax.tasks import make_task, task_class

KINDS = {  # in the order of the page about a run; of a section that two have it shows the later's
    "retrieval": "albef_jax.evaluators.retrieval:RetrievalEvaluator",
    "matching": "albef_jax.evaluators.matching:MatchingEvaluator",
    "contrasts": "albef_jax.evaluators.contrasts:ContrastsEvaluator",
    "masked": "albef_jax.evaluators.masked:MaskedEvaluator",
    "classification": "albef_jax.evaluators.classification:ClassificationEvaluator",
    "vqa": "albef_jax.evaluators.vqa:VqaEvaluator",
    "captions": "albef_jax.evaluators.captions:CaptionsEvaluator",
    "grounding": "albef_jax.evaluators.grounding:GroundingEvaluator",
    "product_retrieval": "albef_jax.evaluators.products:ProductRetrieval",
    "product_classification": "albef_jax.evaluators.products:ProductClassification",
    "product_clustering": "albef_jax.evaluators.products:ProductClustering",
    "masked_regions": "albef_jax.evaluators.masked_regions:MaskedRegionsEvaluator",
    "pair_retrieval": "albef_jax.evaluators.pair_retrieval:PairRetrievalEvaluator",
}
# Options of every block, see `Evaluator.options`; `every` is for the training loop.
COMMON_OPTIONS = {"every": (0, 0), "batch_size": (64, 1)}


def evaluator_class(kind):
    """The class that the `kind` of a block of `config.evals` names; UserError if there is none."""
    return find_class(kind, KINDS, Evaluator, "The kind of an evals block")


def make_evaluators(config, tokenizer, problems=None):
    """The evaluators of `config.evals` by name; those with equal sources share one.

    Args:
      config: of the run, whole. tokenizer: of the run; None if its task reads no texts.
      problems: a list that takes a sentence about every block that cannot be used, which is left
        out; None: it is an error.

    Raises:
      UserError: a block has an unknown kind or option, no source, a value out of range or unusable
        data; or the task cannot do what it asks.
    """
    made, opened = {}, {}
    for name, block in config.evals.items():
        try:
            made[name] = make_evaluator(name, block, config, tokenizer, opened)
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return made


def make_evaluator(name, block, config, tokenizer, opened=None):
    """The evaluator of one block of `config.evals`; see `make_evaluators`.

    `opened` has sources by their blocks, and takes that of this one.
    """
    kind, settings = check_block(name, block, config)
    opened, key = {} if opened is None else opened, str(block["source"])
    if key not in opened:
        opened[key] = make_source(block["source"])
    fields = task_class(config.task).fields(config)
    check_fields({field: fields[field] for field in kind.asks}, opened[key], f"evals.{name}.source")
    return kind(opened[key], settings, config, tokenizer)


def check_block(name, block, config):
    """The class and the settings of a block of `config.evals`, checked before anything is read.

    Raises:
      UserError: see `make_evaluators`.
    """
    if not re.fullmatch(r"[\w-]+", str(name)):
        raise UserError(f"config.evals has a block {shown(name)}; names are of letters, digits, _ "
                        "and -: they stand in the names of files and metrics.")
    if not isinstance(block, Mapping | ConfigDict):
        raise UserError(f"config.evals.{name} is {shown(block)}; give it a block, such as "
                        "dict(kind='retrieval', source='scenes:demo:heldout').")
    kind = evaluator_class(block.get("kind"))
    settings = settings_of(f"The evals block {name!r} of kind {block['kind']!r}", kind, block)
    check_source(block["source"], f"config.evals.{name}.source")
    check_task(name, block["kind"], config)
    kind.check(settings, config)
    return kind, settings


def check_task(name, kind, config):
    """UserError where a config's task lacks functions or fields that the evaluator `name` needs."""
    calls, fields = make_task(config).predict_fns().keys(), task_class(config.task).fields(config)

    def fits(kind):
        wants = evaluator_class(kind)
        return set(wants.calls) <= calls and set(wants.asks) <= fields.keys()

    if not fits(kind):
        fitting = ", ".join(map(repr, filter(fits, KINDS)))
        raise UserError(f"evals.{name} is of kind {kind!r}, which config.task {config.task!r} "
                        f"cannot do; it can do {fitting or 'none'}.")


def settings_of(where, kind, block):
    """The options of a block for a class of evaluators, checked; left out, they are the defaults.

    `where` is what messages call the block.
    """
    options, settings = COMMON_OPTIONS | kind.options, {}
    for name in block:
        if name not in options and name not in ("kind", "source"):
            raise UserError(f"{where} has an unknown field {name!r}; its fields are kind, source, "
                            f"{', '.join(options)}.")
    if not block.get("source"):
        raise UserError(f"{where} has no source; give it one, for example "
                        "source=dict(kind='json', files=('dev.json',), image_roots=('images',)).")
    for name, (default, least) in options.items():
        value = block.get(name, default)
        if words := option_wanted(value, default, least):
            raise UserError(f"{where} has {name}={shown(value)}; it must be {words}.")
        settings[name] = tuple(value) if isinstance(value, list) else value
    return settings


def option_wanted(value, default, least):
    """As `errors.wanted`, of an option; see `Evaluator.options`."""
    if least is None:
        return wanted(value, ("",))
    if isinstance(least, tuple):
        return wanted(value, "", known=least)
    return wanted(value, default, None if isinstance(least, str) else (least, None))


def check_best_metric(config, evaluators):
    """UserError where `checkpoint.best_metric` names a value that its evaluator does not yield.

    Where only a run can tell, `check_measured` says it after the first.
    """
    best = config.checkpoint.best_metric
    name, _, _ = best.partition("/")
    names = evaluators[name].names() if name in evaluators else None
    if names is not None:
        check_measured(best, name, names)


def check_measured(best_metric, name, measured):
    """UserError where the best metric is one of this evaluator and not among what it measured."""
    evaluator, _, value = best_metric.partition("/")
    if evaluator == name and value not in measured:
        raise UserError(f"checkpoint.best_metric is {best_metric!r}, but evals.{name} has no value "
                        f"{value!r}; it has {', '.join(measured) or 'none'}.")
