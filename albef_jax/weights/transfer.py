"""Starting a task from the weights of another: which parameter comes from where.

The rules are written on our own trees, so they hold for runs, imports and exports alike. They are
those of the public code, except that NLVR's teacher starts as a copy of the online weights, as the
paper says (there it starts at random after text assignment).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from albef_jax.errors import UserError
from albef_jax.models.resample import resize_positions
from albef_jax.weights.foreign.kinds import KINDS
from albef_jax.weights.report import as_path, fault

# A path of the new state -> the path of the old state that it comes from, or, as a string, the
# reason why it starts fresh.
Origin = Callable[[tuple[str, ...]], tuple[str, ...] | str]


class Rule(NamedTuple):
    """How one kind starts from another.

    Attributes:
      origin: see `Origin`.
      ignored: keys below `params` or `teacher` (or these themselves) of the old state that are
        left out -> the reason.
    """

    origin: Origin
    ignored: dict[tuple[str, ...], str]


def same(path):
    """Everything keeps its place."""
    return path


def with_classifier(path):
    """The towers keep their place; the classifier is new."""
    if path[1] != "cls_head":
        return path
    return "a new classifier" if path[0] == "params" else "starts as the online classifier"


def into_decoder(path):
    """VQA: the decoder starts as the fusion layers, word embeddings and MLM head."""
    if path[1] != "text_decoder":
        return path
    module = path[2].replace("layer_", "fusion_")
    return (path[0], "text_encoder", module, *path[3:])


def into_pairs(path):
    """Text assignment: both layers of a pair start as the same fusion layer."""
    if path[1] == "ta_head":
        return "a new head"
    if path[1] == "text_encoder" and path[2].startswith("fusion_"):
        number = int(path[2].removeprefix("fusion_"))
        return (*path[:2], f"fusion_{number // 2}", *path[3:])
    return path


def teacher_from_online(path):
    """NLVR after text assignment, which has no teacher: the teacher is a copy."""
    path = with_classifier(path)
    return ("params", *path[1:]) if path[0] == "teacher" else path


NO_WORDS = {("text_encoder", "head"): "the task predicts no words"}
NO_MATCHING = {(head,): "the task compares and matches nothing"
               for head in ("vision_proj", "text_proj", "itm_head", "temp")}

RULES = {
    **{(kind, kind): Rule(same, {}) for kind in KINDS},
    ("pretrain", "retrieval"): Rule(same, NO_WORDS),
    ("pretrain", "ve"): Rule(with_classifier, NO_WORDS | NO_MATCHING),
    ("pretrain", "vqa"): Rule(into_decoder, NO_MATCHING),
    ("pretrain", "nlvr_pretrain"): Rule(into_pairs, NO_WORDS | {
        ("itm_head",): "the task matches nothing", ("teacher",): "the task has no teacher"}),
    ("nlvr_pretrain", "nlvr"): Rule(teacher_from_online, NO_MATCHING | {
        ("ta_head",): "the task assigns no texts"}),
}


def rule_for(source, target):
    """The rule for starting the kind `target` from weights of the kind `source`.

    Raises:
      UserError: there is none.
    """
    if (source, target) not in RULES:
        starts = [old for old, new in RULES if new == target]
        raise UserError(f"A {target} run cannot start from {source} weights; it can start from "
                        f"{', '.join(starts) or 'random weights only'}.")
    return RULES[source, target]


def transfer(stored, config, fresh, report):
    """The leaves of a new run that come from stored weights, strictly.

    Position embeddings are interpolated to the resolution of the config. The queues come along
    where they have the same size.

    Args:
      stored: a `weights.stored.Stored`. config: of the new run.
      fresh: path tuple -> leaf (anything with shape and dtype) of its parameters, teacher and
        memory. report: is told what went where.

    Returns:
      Path tuple -> numpy array; what is not in it starts fresh.

    Raises:
      UserError: there is no rule, or a parameter is missing, unknown, misshapen or not finite.
    """
    check_heads(stored, config)
    rule, leaves = rule_for(stored.config.task, config.task), {}
    lost = lost_memory(stored, config, fresh)
    for path, leaf in fresh.items():
        origin = lost.get(path) if path[0] == "memory" and path in lost else rule.origin(path)
        if isinstance(origin, str):
            report.fresh(path, origin)
            continue
        report.use([as_path(origin)], path)
        if origin not in stored.leaves:
            continue  # reported as missing
        value = stored.leaves[origin]
        if path[-1] == "pos_embed" and value.shape != leaf.shape:
            value = resize_positions(value, config.model.image_size // config.model.patch_size)
            report.interpolate(path, f"{stored.config.model.image_size} px",
                               f"{config.model.image_size} px")
        if what := fault(value, leaf.shape, leaf.dtype):
            report.wrong(as_path(origin), what)
        leaves[path] = np.asarray(value, leaf.dtype)
    for path in stored.leaves:
        if reason := reason_to_ignore(path, rule, fresh, lost):
            report.ignore(as_path(path), reason)
    report.check(map(as_path, stored.leaves), fresh)
    return leaves


def check_heads(stored, config):
    """Heads leave no trace in shapes, so they are compared by themselves.

    Raises:
      UserError: they differ.
    """
    for name in ("vit_heads", "text_heads"):
        if stored.config.model[name] != config.model[name]:
            raise UserError(f"{stored.path} has model.{name}={stored.config.model[name]}, but the "
                            f"config has {config.model[name]}; set it to the former.")


def lost_memory(stored, config, fresh):
    """Path of a memory leaf of the new run -> why it starts fresh, where it does."""
    queues = [("memory", name) for name in ("image_queue", "text_queue")]
    fits = all(path in stored.leaves and path in fresh
               and stored.leaves[path].shape == fresh[path].shape for path in queues)
    pointer = ("memory", "pointer")
    lost = {("memory", "id_queue"): "image ids belong to the data of the other run"}
    if not fits:
        lost |= {path: "a queue of another size" for path in (*queues, pointer)}
    elif stored.leaves[pointer] % config.batch_size:
        lost[pointer] = "the old position is no multiple of batch_size"
    return {path: reason for path, reason in lost.items() if path in fresh}


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
