"""Evaluators by kind. Others are named by their class; see `evaluators.base.Evaluator`."""

from albef_jax.data.fields import check_fields
from albef_jax.data.sources import make_source
from albef_jax.errors import UserError
from albef_jax.evaluators.base import Evaluator
from albef_jax.files import find_class
from albef_jax.tasks import make_task, task_class

KINDS = {  # in the order of the page about a run; of a section that two have it shows the later's
    "retrieval": "albef_jax.evaluators.retrieval:RetrievalEvaluator",
    "matching": "albef_jax.evaluators.matching:MatchingEvaluator",
    "masked": "albef_jax.evaluators.masked:MaskedEvaluator",
    "classification": "albef_jax.evaluators.classification:ClassificationEvaluator",
    "vqa": "albef_jax.evaluators.vqa:VqaEvaluator",
    "grounding": "albef_jax.evaluators.grounding:GroundingEvaluator",
    "pair_retrieval": "albef_jax.evaluators.pair_retrieval:PairRetrievalEvaluator",
}
# Options of every block, see `Evaluator.options`; `every` is for the training loop.
COMMON_OPTIONS = {"every": (0, 0), "batch_size": (64, 1)}


def evaluator_class(kind):
    """The class that the `kind` of a block of `config.evals` names.

    Raises:
      UserError: there is none.
    """
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

    Args:
      name: of the block. opened: sources by their blocks, which takes that of this one.
    """
    kind = evaluator_class(block.get("kind"))
    settings = settings_of(f"The evals block {name!r} of kind {block['kind']!r}", kind, block)
    check_task(name, block["kind"], config)
    opened, key = {} if opened is None else opened, str(block["source"])
    if key not in opened:
        opened[key] = make_source(block["source"])
    fields = task_class(config.task).fields(config)
    check_fields({field: fields[field] for field in kind.asks}, opened[key],
                 f"evals.{name}.source")
    return kind(opened[key], settings, config, tokenizer)


def check_task(name, kind, config):
    """Checks that the task of a config has the functions and fields that an evaluator needs.

    Args:
      name: of its block. kind: of the block.

    Raises:
      UserError: with the kinds that fit.
    """
    calls, fields = make_task(config).predict_fns().keys(), task_class(config.task).fields(config)

    def fits(kind):
        wants = evaluator_class(kind)
        return set(wants.calls) <= calls and set(wants.asks) <= fields.keys()

    if not fits(kind):
        fitting = ", ".join(map(repr, filter(fits, KINDS)))
        raise UserError(f"evals.{name} is of kind {kind!r}, which config.task {config.task!r} "
                        f"cannot do; it can do {fitting or 'none'}.")


def settings_of(where, kind, block):
    """The options of a block, checked; those that it leaves out have their defaults.

    Args:
      where: what the block is called in messages. kind: class of the evaluator.
    """
    options = COMMON_OPTIONS | kind.options
    for name in block:
        if name not in options and name not in ("kind", "source"):
            raise UserError(f"{where} has an unknown field {name!r}; its fields are kind, source, "
                            f"{', '.join(options)}.")
    if not block.get("source"):
        raise UserError(f"{where} has no source; give it one, for example "
                        "source=dict(kind='json', files=('dev.json',), image_roots=('images',)).")
    return {name: checked(where, name, block.get(name, default), default, least)
            for name, (default, least) in options.items()}


def checked(where, name, value, default, least):
    """A value of an option that has this default and least value; see `Evaluator.options`."""
    if least is None or isinstance(default, tuple):
        kind, wanted = (str, "words, such as ('red', 'blue')") if least is None else (
            int, f"numbers of at least {least}, such as (16, 128)")
        good = isinstance(value, (list, tuple)) and all(
            isinstance(item, kind) and (least is None or item >= least) for item in value)
        if not good:
            raise UserError(f"{where} has {name}={value!r}; give a tuple of {wanted}.")
        return tuple(value)
    if isinstance(least, (str, tuple)):
        if not isinstance(value, str) or (isinstance(least, tuple) and value not in least):
            wanted = f"choose one of {least}" if least else "give a text"
            raise UserError(f"{where} has {name}={value!r}; {wanted}.")
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not value >= least:
        raise UserError(f"{where} has {name}={value!r}; make it a number of at least {least}.")
    return value


def check_best_metric(config, evaluators):
    """Checks that `checkpoint.best_metric` names a value that its evaluator yields.

    Where only a run can tell, `check_measured` says it after the first.

    Raises:
      UserError: it does not, with the names that it has.
    """
    best = config.checkpoint.best_metric
    name, _, _ = best.partition("/")
    names = evaluators[name].names() if name in evaluators else None
    if names is not None:
        check_measured(best, name, names)


def check_measured(best_metric, name, measured):
    """Checks that `checkpoint.best_metric` is among the values of an evaluator, if it is of this.

    Args:
      best_metric: as in the config. name: of the evaluator. measured: names of its values.

    Raises:
      UserError: it is not, with the names that there are.
    """
    evaluator, _, value = best_metric.partition("/")
    if evaluator == name and value not in measured:
        raise UserError(f"checkpoint.best_metric is {best_metric!r}, but evals.{name} has no value "
                        f"{value!r}; it has {', '.join(measured) or 'none'}.")
