"""The stages of a run: the same weights on other data, with another rate or other losses.

ImageBERT (arXiv:2001.07966, section 3) goes from much noisy data to little clean data this way. A
run in one piece is a run of one stage.
"""

import contextlib
import dataclasses
from typing import Any

import jax

from albef_jax.config import stages_of
from albef_jax.core.build import build
from albef_jax.data.fields import open_fields
from albef_jax.data.pipeline import TrainPipeline
from albef_jax.errors import UserError
from albef_jax.parallel.mesh import local_rows
from albef_jax.tasks import task_class

SHARED = ("params", "teacher", "memory")  # parts of the state that one stage leaves to the next


@dataclasses.dataclass
class RunStage:
    """Steps `begin + 1` to `end` of a run.

    Attributes:
      name: '' of a run in one piece. config: its own, with everything filled in.
      begin, end: numbers of finished steps. pipeline: its data, addressed by steps from 0.
      parts: its task, optimizer, schedule and step.
    """

    name: str
    config: Any
    begin: int
    end: int
    pipeline: TrainPipeline
    parts: Any

    def rate(self, step):
        """The learning rate of the step after `step` finished ones."""
        return self.parts.schedule(step - self.begin)

    def entered(self, state):
        """The state in which the stage begins: weights stay, the optimizer starts again."""
        def enter(params, memory):
            return self.parts.optimizer.init(params), self.parts.task.with_new_data(memory)

        shardings = self.parts.shardings
        opt_state, memory = jax.jit(enter, out_shardings=(shardings.opt_state, shardings.memory))(
            state.params, state.memory)
        return state.replace(opt_state=opt_state, memory=memory)


def first_metrics(config):
    """The metrics that people see first, see `Task.shown`, of any stage of a run."""
    return [*{one.name: one for _, own in stages_of(config)
              for one in task_class(own.task).shown(own)}.values()]


def make_stages(stages, sources, tokenizer, mesh):
    """The `RunStage`s of a run.

    Args:
      stages: `config.Stage`s with everything filled in. sources: the source of each.
      tokenizer: of the run. mesh: its devices.

    Raises:
      UserError: a stage has too little data, or a state of another shape than the first.
    """
    made, begin = [], 0
    for number, ((name, config), source) in enumerate(zip(stages, sources, strict=True)):
        fields = open_fields(task_class(config.task).fields(config), source, tokenizer)
        # Another seed: stages on the same data do not see them in the same order again.
        pipeline = TrainPipeline(source, fields, config.data, config.batch_size,
                                 (config.seed + number) % 2**32,
                                 local_rows(mesh, config.batch_size))
        made.append(RunStage(name, config, begin, begin + config.steps, pipeline,
                             build(config, mesh)))
        begin += config.steps
    check_shapes(made)
    return made


def check_shapes(stages):
    """What one stage leaves to the next has one shape.

    Raises:
      UserError: naming a part of the state that has not.
    """
    first, *others = stages
    for stage in others:
        for part in SHARED:
            before, now = (jax.tree_util.tree_leaves_with_path(getattr(one.parts.state, part))
                           for one in (first, stage))
            shapes = [{jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
                       for path, leaf in leaves} for leaves in (before, now)]
            for path in dict.fromkeys([*shapes[0], *shapes[1]]):
                if shapes[0].get(path) != shapes[1].get(path):
                    raise UserError(
                        f"The stage {stage.name!r} has {part}/{path} of shape "
                        f"{shapes[1].get(path)}, but {first.name!r} of {shapes[0].get(path)}; "
                        "give both the same sizes in `data` and `objective`.")


def stage_at(stages, step):
    """The stage that made the state after so many steps: at a border the one that ends there."""
    return next((stage for stage in stages if step <= stage.end), stages[-1])


def batches(stages, start):
    """Yields (stage, batch) of every step from `start` finished ones on."""
    for stage in stages:
        if start < stage.end:
            first = max(start - stage.begin, 0)
            with contextlib.closing(stage.pipeline.iterate(first, stage.end - stage.begin)) as made:
                for batch in made:
                    yield stage, batch
