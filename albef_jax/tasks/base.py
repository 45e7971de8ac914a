"""The contract between a task (what is learned) and the step, loop and evaluators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from albef_jax.errors import UserError
from albef_jax.parallel.axes import axis_names


class Aux(NamedTuple):
    """What a loss returns beside the scalar."""

    metrics: dict[str, jax.Array]  # name -> scalar, averaged over groups and logged
    enqueue: dict[str, jax.Array]  # `[group_size, ...]` for `update_memory`, in global order there
    record: dict[str, Any]  # named intermediates, for tests; never computed unless read


class Shown(NamedTuple):
    """A metric of `Aux.metrics` that a person sees first: in the log line, and as a chart."""

    name: str
    label: str  # in the log line
    title: str = ""  # of its chart; '' for none
    share: bool = False  # it is a share, shown in percent
    blind: float | None = None  # of a model that knows nothing, a dashed line; None: not known
    note: str = ""  # what the dashed line is
    # What to do where it stays at `blind`; '' where nobody is told, see `run.plateau`.
    advice: str = ""
    blind_accuracy: tuple[str, float] = ("", 0.0)  # the metric that is at this value then


# A path of the new state -> the path of the old state that it comes from, or, as a string, the
# reason why it starts fresh. Paths are tuples from 'params', 'teacher' or 'memory' down.
Origin = Callable[[tuple[str, ...]], tuple[str, ...] | str]


class Rule(NamedTuple):
    """How a task starts from the weights of another."""

    origin: Origin
    # Keys below `params` or `teacher` (or these) of the old state that are left out -> the reason.
    ignored: dict[tuple[str, ...], str]
    # Heads in the new `model` block -> those of the old one that it must have, where names differ.
    heads: dict[str, str] = {}


def same(path):
    """The `Origin` where everything keeps its place."""
    return path


def take_words(model, tokenizer):
    """Writes what a tokenizer decides into a `model` block: the keys that it has."""
    for name in ("vocab_size", "pad_id", "cls_id", "sep_id", "mask_id"):
        if name in model:
            model[name] = getattr(tokenizer, name)


def check_mask_shares(config):
    """Raises a UserError where `objective.mask_replace` are no shares of masked words."""
    shares = config.objective.mask_replace
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"objective.mask_replace is {shares}; give three shares that sum to "
                        "1, such as (0.8, 0.1, 0.1).")


class Task:
    """What is learned: one file, a model, the fields of a batch, and a loss.

    `config.task` names the class: one of ours (`tasks.TASKS`), `package.module:Class` or
    `path/to/file.py:Class`. What a subclass does not say is as here.
    """

    model: nn.Module
    class_names: tuple[str, ...] = ()  # what the outputs of `classify` mean
    # Dotted keys of the config -> (least, most), see `config.LIMITS`; -> the values it may have.
    limits: dict[str, tuple] = {}
    choices: dict[str, tuple] = {}
    # Names of axes that `config.rules` may have.
    logical_axes: tuple[str, ...] = ("embed", "mlp", "heads", "vocab", "queue")
    free_keys: tuple[str, ...] = ()  # dotted keys of `model` that may change when a run goes on
    # Values by dotted key that lower the memory of a step, the cheapest in time first.
    lighter: tuple[dict[str, Any], ...] = ({"accumulation": 2}, {"accumulation": 4})
    smaller: tuple[str, ...] = ("batch_size",)  # dotted keys of sizes that memory grows with

    def __init__(self, config):
        """`config`: a whole one, with everything filled in that data decides (see `resolve`)."""

    # ---- about the config, before there is a task ------------------------------------------

    @classmethod
    def defaults(cls):
        """Its part of the config: dicts of the blocks `model`, `objective`, `optimizer`, `data`.

        `data` has the `defaults` of the fields.
        """
        return {}

    @classmethod
    def check(cls, config):
        """Checks its part of a config before anything is read.

        Raises UserError that names the keys, and values that would fit.
        """

    @classmethod
    def fields(cls, config):
        """Field name -> `data.fields.Field`: what a batch has."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, config, tokenizer, steps_per_epoch):
        """Fills in what depends on the data: here, of an unlocked config, the tokenizer's ids.

        Args:
          tokenizer: of the run; None if no field reads texts. steps_per_epoch: at least 1.
        """
        if tokenizer and "vocab_size" in config.model:
            take_words(config.model, tokenizer)

    @classmethod
    def flops(cls, config):
        """FLOPs of a training step per example by term, as the public code computes it.

        Empty where they are not known; utilisation is then not shown.
        """
        return {}

    @classmethod
    def shown(cls, config):
        """The metrics to show first, in order: a list of `Shown`, the losses before the rest."""
        return [Shown("loss", "loss", "Loss")]

    @classmethod
    def facts(cls, config):
        """What the model of a config is, in a few words each, for people."""
        return []

    @classmethod
    def from_other(cls, name):
        """The `Rule` for starting from weights of the task `name`; None where there is none."""

    # ---- parameters and state --------------------------------------------------------------

    def init(self, rng):
        """Fresh online parameters; all shapes are in the config."""
        return nn.unbox(self.init_boxed(rng))

    def init_boxed(self, rng):
        """As `init`, straight from the model's `init`: with names of axes, where it gives them."""
        raise NotImplementedError

    def axes(self):
        """The names of the parameters' axes: a tree as of `init`, of `PartitionSpec`s."""
        def names(path, leaf):
            known = named
            for key in path:
                known = known.get(key.key, PartitionSpec()) if isinstance(known, dict) else known
            return known

        rng = jax.random.key(0)
        named = axis_names(jax.eval_shape(self.init_boxed, rng))
        return jax.tree_util.tree_map_with_path(names, jax.eval_shape(self.init, rng))

    def prepare(self, params):
        """Parameters as they enter the step: what is clamped is clamped here."""
        return params

    def untrained(self, path):
        """Whether the parameter at this path, a tuple of keys, is never updated.

        Those that the loss sends no gradient are found without this.
        """
        return False

    def teacher_of(self, params):
        """The subtree of the parameters that has a momentum copy."""
        return {}

    def init_memory(self, rng):
        """Fresh memory (queues and the like), a dict."""
        return {}

    @classmethod
    def bert_start(cls, config, params):
        """What `config.init.bert` fills.

        Args:
          config: a whole one. params: fresh ones, nested dicts.

        Returns:
          The config and a part of the parameters, by the names of ALBEF's model and text encoder.
        """
        return config, params["text_encoder"]

    @classmethod
    def with_bert(cls, params, filled):
        """The parameters with the part that `bert_start` named filled."""
        return {**params, "text_encoder": filled}

    def update_memory(self, memory, enqueue):
        """Memory after the step; `enqueue` holds the whole batch in global order."""
        return memory

    def with_new_data(self, memory):
        """Memory as a stage of a run on other data begins with it."""
        return memory

    # ---- what it does ----------------------------------------------------------------------

    def schedule(self, step):
        """Scalars that depend on the number of finished steps, as a dict."""
        return {}

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """The loss of ONE group, and its Aux.

        Args:
          params: prepared online parameters. teacher: the EMA with this step's weights.
          memory: as at the start of the step. group: the arrays of the fields, `[group_size, ...]`.
          key: PRNG key of this step and group. schedule: from `schedule`.
          draws: random choices to use instead of drawing them, or None.
        """
        raise NotImplementedError

    def predict_fns(self):
        """name -> pure function of the online parameters and arrays by name, for evaluation."""
        return {}
