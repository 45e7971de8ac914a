"""The contract between a task (what is learned) and the step, loop and evaluators."""

from typing import Any, NamedTuple, Protocol

import jax


class Aux(NamedTuple):
    """What a loss returns beside the scalar.

    Attributes:
      metrics: name -> scalar, averaged over groups and logged.
      enqueue: arrays `[group_size, ...]` for `update_memory`, gathered in global order.
      record: named intermediates, for tests and inspection; never computed unless read.
    """

    metrics: dict[str, jax.Array]
    enqueue: dict[str, jax.Array]
    record: dict[str, Any]


class Task(Protocol):
    """One file in tasks/, one entry in the registry of `tasks/__init__.py`.

    Attributes:
      needs: what a batch must have besides images and texts, of `Source.fields`.
      views: images per text.
    """

    needs: tuple[str, ...] = ()
    views: int = 1

    def init(self, rng):
        """Fresh online parameters; all shapes are in the config."""

    def init_memory(self, rng):
        """Fresh memory (queues and the like), a dict; may be empty."""

    def prepare(self, params):
        """Parameters as they enter the step: what is clamped is clamped here."""

    def teacher_of(self, params):
        """The subtree of the parameters that has a momentum copy; may be empty."""

    def schedule(self, step):
        """Scalars that depend on the number of finished steps, as a dict."""

    def loss(self, params, teacher, memory, group, key, schedule, draws=None):
        """The loss of ONE group, and its Aux.

        Args:
          params: prepared online parameters. teacher: the EMA with this step's weights.
          memory: as at the start of the step. group: the batch fields, `[group_size, ...]`.
          key: PRNG key of this step and group. schedule: from `schedule`.
          draws: random choices to use instead of drawing them, or None.
        """

    def update_memory(self, memory, enqueue):
        """Memory after the step; `enqueue` holds the whole batch in global order."""

    def predict_fns(self):
        """name -> pure function of the online parameters, for evaluation."""
