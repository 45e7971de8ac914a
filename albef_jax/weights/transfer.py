"""Starting a task from the weights of another: which parameter comes from where.

The rules are the tasks' own (`Task.from_other`). They are written on our own trees, so they hold
for runs, imports and exports alike.
"""

import numpy as np

from albef_jax.errors import UserError
from albef_jax.models.resample import resize_positions
from albef_jax.tasks import TASKS, task_class
from albef_jax.tasks.base import Rule, same
from albef_jax.weights.report import as_path

# What is remembered only of the own data, and the row to write next, a multiple of batch_size.
IMAGE_IDS, POINTER = ("memory", "id_queue"), ("memory", "pointer")


def rule_for(source, target):
    """The rule for starting the task `target` from weights of the task `source`, or a UserError."""
    rule = rule_of(source, target)
    if rule is None:
        starts = [name for name in dict.fromkeys((target, *TASKS)) if rule_of(name, target)]
        raise UserError(f"A {target} run cannot start from {source} weights; it can start from "
                        f"{', '.join(starts)}.")
    return rule


def rule_of(source, target):
    """As `rule_for`, None where there is none; every task starts from itself."""
    return task_class(target).from_other(source) or (Rule(same, {}) if source == target else None)


def transfer(stored, config, fresh, report):
    """The leaves of a new run that come from stored weights, strictly.

    Position embeddings are interpolated to the resolution of the config. The queues come along
    where they have the same size.

    Args:
      stored: a `weights.stored.Stored`. config: of the new run. report: is told what went where.
      fresh: path -> shape and dtype of the leaves of its parameters, teacher and memory.

    Returns:
      Path -> numpy array; what is not in it starts fresh.

    Raises:
      UserError: there is no rule, or a parameter is missing, unknown, misshapen or not finite.
    """
    rule, leaves = rule_for(stored.config.task, config.task), {}
    check_heads(stored, config, rule)
    lost, used = lost_memory(stored, config, fresh, rule), set()
    for path, leaf in fresh.items():
        origin = lost.get(path) or rule.origin(path)
        if isinstance(origin, str):
            report.fresh(path, origin)
            continue
        report.use([as_path(origin)], path)
        used.add(origin)
        if origin not in stored.leaves:
            continue  # reported as missing
        value = stored.leaves[origin]
        if (path[-1] == "pos_embed" and value.shape != leaf.shape
                and has_patches(config) and has_patches(stored.config)):
            value = resize_positions(value, config.model.image_size // config.model.patch_size)
            report.interpolate(path, f"{stored.config.model.image_size} px",
                               f"{config.model.image_size} px")
        report.inspect(as_path(origin), value, leaf.shape, leaf.dtype)
        leaves[path] = np.asarray(value, leaf.dtype)
    for path in stored.leaves:
        if path not in used and (reason := reason_to_ignore(path, rule, fresh, lost)):
            report.ignore(as_path(path), reason)
    report.check(map(as_path, stored.leaves), fresh)
    return leaves


def has_patches(config):
    """Whether the model reads square images in patches."""
    return "image_size" in config.model and "patch_size" in config.model


def check_heads(stored, config, rule):
    """A UserError if heads differ: they leave no trace in shapes."""
    there = stored.config.model
    same_name = {name: name for name in there if name.endswith("heads") and name in config.model}
    for name, old in (same_name | rule.heads).items():
        if config.model[name] != there[old]:
            raise UserError(f"{stored.path} has model.{old}={there[old]}, but the config has "
                            f"{config.model[name]}; set {'it' if name == old else f'model.{name}'} "
                            "to the former.")


def lost_memory(stored, config, fresh, rule):
    """Path of a memory leaf of the new run -> why it starts fresh, where the rule would take it: as
    a whole where a part has another size."""
    memory = {path: origin for path in fresh if path[0] == "memory" and path != IMAGE_IDS
              and not isinstance(origin := rule.origin(path), str)}
    fits = all(origin in stored.leaves and stored.leaves[origin].shape == fresh[path].shape
               for path, origin in memory.items())
    lost = {} if fits else dict.fromkeys(memory, "a queue of another size")
    if fits and POINTER in memory and stored.leaves[memory[POINTER]] % config.batch_size:
        lost[POINTER] = "the old position is no multiple of batch_size"
    if IMAGE_IDS in fresh:
        lost[IMAGE_IDS] = "image ids belong to the data of the other run"
    return lost


def reason_to_ignore(path, rule, fresh, lost):
    """Why a stored leaf is left out, None if it must be used."""
    if path[0] == "memory":
        if path in lost:
            return lost[path]
        return None if path in fresh else "the run has no such queue"
    for prefix, reason in rule.ignored.items():
        if prefix in (path[:1], path[1:1 + len(prefix)]):
            return reason
    return None
