"""Evaluators: built once from a config block, run as often as wanted.

`run(params, predict_fns, mesh)` yields `(name, value)`; values are percentages. The compiled
functions stay with the evaluator, so the second run inside training compiles nothing.
"""

from albef_jax.errors import UserError
from albef_jax.evaluators.classification import ClassificationEvaluator
from albef_jax.evaluators.grounding import GroundingEvaluator
from albef_jax.evaluators.masked import MaskedEvaluator
from albef_jax.evaluators.matching import MatchingEvaluator
from albef_jax.evaluators.retrieval import RetrievalEvaluator
from albef_jax.evaluators.vqa import VqaEvaluator

EVALUATORS = {
    "grounding": GroundingEvaluator,
    "retrieval": RetrievalEvaluator,
    "matching": MatchingEvaluator,
    "masked": MaskedEvaluator,
    "vqa": VqaEvaluator,
    "classification": ClassificationEvaluator,
}
# What each kind calls of `Task.predict_fns`.
CALLS = {
    "grounding": ("itm_heat", "itc_heat"),
    "retrieval": ("encode_image", "encode_text", "match"),
    "matching": ("encode_image", "encode_text", "match"),
    "masked": ("encode_image", "mlm_logits"),
    "vqa": ("encode", "rank", "generate"),
    "classification": ("classify",),
}
# Fields of every block: (default, least); without a least value the field is a tuple of words, with
# a text for it a text, with a tuple for it one of these texts; with a tuple as its default it is a
# tuple of numbers. An evaluator adds its own; `every` is for the training loop.
COMMON_FIELDS = {"every": (0, 0), "batch_size": (64, 1)}


def check_task(evals, task_name, predict_fns):
    """Checks that a task can do what the blocks of `config.evals` ask of it.

    Raises:
      UserError: naming the first block whose kind is for other tasks.
    """
    for name, block in evals.items():
        if not set(CALLS[block["kind"]]) <= predict_fns.keys():
            fitting = [kind for kind, calls in CALLS.items() if set(calls) <= predict_fns.keys()]
            raise UserError(f"evals.{name} is of kind {block['kind']!r}, which config.task "
                            f"{task_name!r} cannot do; it can do "
                            f"{', '.join(map(repr, fitting)) or 'none'}.")


def make_evaluator(block, data_config, tokenizer, seed):
    """Builds the evaluator of one block of `config.evals`.

    Args:
      block: `kind`, `source`, and optionally `every`, `batch_size` (rows encoded or pairs scored
        at a time) and the fields of the kind: `max_images` (0: all; n: the first n images with
        all their captions) or `max_examples` (0: all; n: the first n), and its own.
      data_config: `config.data`: image size, text length and cleaning.
      tokenizer: the tokenizer of the run.
      seed: of captions, negatives and masks; the same seed gives the same questions.

    Returns:
      An object with `run(params, predict_fns, mesh)` and `description`, one line about its data.

    Raises:
      UserError: unknown kind or field, no source, a value out of range, or unusable data.
    """
    kind = block.get("kind")
    if kind not in EVALUATORS:
        raise UserError(f"An evals block has kind={kind!r}; use one of "
                        f"{', '.join(map(repr, EVALUATORS))}.")
    fields = COMMON_FIELDS | EVALUATORS[kind].fields
    where = f"The evals block of kind {kind!r}"
    for name in block:
        if name not in fields and name not in ("kind", "source"):
            raise UserError(f"{where} has an unknown field {name!r}; its fields are kind, source, "
                            f"{', '.join(fields)}.")
    if not block.get("source"):
        raise UserError(f"{where} has no source; give it one, for example "
                        "source=dict(kind='json', files=('dev.json',), image_roots=('images',)).")
    settings = {name: block.get(name, default) for name, (default, _) in fields.items()}
    for name, (default, least) in fields.items():
        if least is None:
            settings[name] = tuple_of_words(where, name, settings[name])
        elif isinstance(least, (str, tuple)):
            check_text(where, name, settings[name], least)
        elif isinstance(default, tuple):
            settings[name] = tuple_of_numbers(where, name, settings[name], least)
        elif settings[name] < least:
            raise UserError(f"{where} has {name}={settings[name]}; make it at least {least}.")
    return EVALUATORS[kind](block["source"], settings, data_config, tokenizer, seed)


def tuple_of_numbers(where, name, value, least):
    """Checks a field that is a list or tuple of whole numbers."""
    if not isinstance(value, (list, tuple)) or not all(
            isinstance(number, int) and number >= least for number in value):
        raise UserError(f"{where} has {name}={value!r}; give a tuple of numbers of at least "
                        f"{least}, such as (16, 128).")
    return tuple(value)


def check_text(where, name, value, choices):
    """Checks a field that is a text: any, or one of a tuple."""
    if not isinstance(value, str) or (isinstance(choices, tuple) and value not in choices):
        wanted = f"choose one of {choices}" if choices else "give a text"
        raise UserError(f"{where} has {name}={value!r}; {wanted}.")


def tuple_of_words(where, name, value):
    """Checks a field that is a list or tuple of texts."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        raise UserError(f"{where} has {name}={value!r}; give a tuple of words, such as "
                        "('red', 'blue').")
    return tuple(value)
