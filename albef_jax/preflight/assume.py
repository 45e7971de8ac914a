"""What training learns from its data, assumed: a plan and a benchmark read none."""

from typing import NamedTuple

from albef_jax.config import check_config, of_stages, stages_of
from albef_jax.data.text import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from albef_jax.tasks import task_class


class Vocabulary(NamedTuple):
    """A tokenizer that is not trained yet: the special tokens come first."""

    vocab_size: int
    pad_id: int = SPECIAL_TOKENS.index(PAD)
    cls_id: int = SPECIAL_TOKENS.index(CLS)
    sep_id: int = SPECIAL_TOKENS.index(SEP)
    mask_id: int = SPECIAL_TOKENS.index(MASK)


def assumed(config, examples=0):
    """The config with everything filled in that data would decide; see `train.resolve`.

    A run that trains its own vocabulary has as many words as `data.vocab_size` allows. Of a run in
    stages it is the last one's, with the steps of all.

    Args:
      config: a whole one. examples: in an epoch; 0: as the config states.

    Returns:
      A locked config whose `data.examples` are these; its `steps` are 0 where nothing tells them.

    Raises:
      UserError: see `check_config`.
    """
    check_config(config)
    return of_stages([stage._replace(config=_assumed(stage.config, examples))
                      for stage in stages_of(config)])


def _assumed(config, examples):
    config = config.copy_and_resolve_references().unlock()
    config.data.examples = examples or config.data.examples
    per_epoch = config.data.examples // config.batch_size
    config.steps = config.steps or config.epochs * per_epoch
    # Any number compiles to the same work.
    config.optimizer.steps_per_epoch = config.optimizer.steps_per_epoch or max(per_epoch, 1)
    own = config.data.get("tokenizer") == ""
    task_class(config.task).resolve(config, Vocabulary(config.data.vocab_size) if own else None,
                                    max(per_epoch, 1))
    return config.lock()
