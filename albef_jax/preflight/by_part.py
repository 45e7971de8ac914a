"""What each part of a model costs in a compiled step: bytes, FLOPs and seconds, which sum to all.

A part is a path of modules without the numbers of layers, such as `visual_encoder/block/attn`, read
from the names that JAX gives operations. What stands in no module has the name of its
`jax.named_scope`, or is one of `losses`, `copies` (between main memory and that of the chip, which
the compiler adds and which run beside other work), `collectives` and `unnamed`.
"""

import json
import re
from typing import NamedTuple

from albef_jax.errors import UserError
from albef_jax.files import read_bytes, write
from albef_jax.preflight.roofline import predict
from albef_jax.run.tables import aligned

DEPTH = 3  # of a path of modules
LEAST = 0.001  # share of the time from which a part has a row of its own
PASSES = ("forward", "backward", "teacher", "other")  # of a step
_WRAPPED = re.compile(r"^(?:jvp|vmap|transpose|checkpoint|remat|shard_map)\((.*)\)$")
_MODULE = re.compile(r"^[a-z]\w*(?:\.[a-z_]\w*)?$")
_LOOPS = frozenset(("while", "body", "cond", "branch", "closed_call", "checkpoint", "shard_map",
                    "rematted_computation", "remat", "pallas_call"))
_COPIES = ("copy-start", "slice-start")


class Cost(NamedTuple):
    """What a part costs on a device in a step."""

    bytes: float = 0.0  # to and from main memory; of collectives: sent
    flops: float = 0.0  # of matrix products
    seconds: float = 0.0  # at the peaks, see `roofline.predict`

    def __add__(self, other):
        return Cost(*(a + b for a, b in zip(self, other)))


def part_of(op_name: str) -> tuple[str, str]:
    """The part and the pass (one of `PASSES`) of an operation, of its name in a program."""
    *path, _ = op_name.split("/")
    names = []
    for name in path:
        while wrapped := _WRAPPED.match(name):
            name = wrapped[1]
        name = re.sub(r"_\d+$", "", name.partition(".")[0]) if _MODULE.match(name) else ""
        if name and name not in _LOOPS and name not in names[-1:]:
            names.append(name)
    if names[:1] == ["teacher"]:
        return "/".join(names[1:DEPTH + 1]) or "losses", "teacher"
    if "jvp(" not in op_name:
        return names[0] if names else "unnamed", "other"
    back = "transpose(" in op_name or "rematted_computation" in op_name
    return "/".join(names[:DEPTH]) or "losses", "backward" if back else "forward"


def costs(work, collectives, rates) -> dict[tuple[str, str], Cost]:
    """Cost by part and pass.

    Args:
      work: of `hlo.Program.work`. collectives: of `hlo.Program.collectives`.
      rates: peak, bandwidth and network of a device, as `roofline.predict` takes them.
    """
    found = {}
    for one in work:
        key = ("copies", "other") if one.instruction.opcode in _COPIES else part_of(
            one.instruction.attribute(r'op_name="([^"]*)"') or "")
        seconds = predict([(one.flops, one.moved)], [], *rates).bound
        cost = Cost(one.moved, one.flops, seconds)
        found[key] = found.get(key, Cost()) + Cost(*(value * one.times for value in cost))
    if collectives:
        sent = [collective.wire for collective in collectives]
        found["collectives", "other"] = Cost(0.0, 0.0, predict([], sent, *rates).network)
    return found


def sums_of(found) -> dict[str, Cost]:
    """The sum of all passes of each part, that of the most seconds first."""
    sums = {}
    for (part, _), cost in found.items():
        sums[part] = sums.get(part, Cost()) + cost
    return dict(sorted(sums.items(), key=lambda item: -item[1].seconds))


def rows_of(seconds) -> dict[str, list[str]]:
    """Name of a row -> its parts: large ones alone, then the small ones in one row, then all.

    `seconds`: of each part, that of the most first.
    """
    total = sum(seconds.values())
    small = [part for part, value in seconds.items() if value < LEAST * total]
    groups = {part: [part] for part in seconds if part not in small}
    return groups | {f"the smallest {len(small)}": small, "total": list(seconds)}


def table(found) -> str:
    """Bytes by part and pass, FLOPs and seconds by part, and the sums of all."""
    sums = sums_of(found)
    total = sum(sums.values(), Cost())
    rows = [("GB moved by", *PASSES, "all", "TFLOP", "ms", "% of time")]
    for name, parts in rows_of({part: cost.seconds for part, cost in sums.items()}).items():
        cost = sum((sums[part] for part in parts), Cost())
        passes = [sum(one.bytes for (part, own), one in found.items()
                      if own == which and part in parts) for which in PASSES]
        rows.append((name, *(f"{size / 1e9:.3f}" for size in (*passes, cost.bytes)),
                     f"{cost.flops / 1e12:.3f}", f"{cost.seconds * 1e3:.2f}",
                     f"{100 * cost.seconds / total.seconds:.1f}"))
    return "\nby part, at the peaks of the device\n" + aligned(rows, indent=2)


def write_json(path, target: str, found) -> None:
    """Writes costs so that `read_json` finds them again; raises OSError."""
    rows = [{"part": part, "pass": name, **cost._asdict()}
            for (part, name), cost in found.items()]
    write(path, json.dumps({"target": target, "parts": rows}, indent=1))


def read_json(path) -> dict[tuple[str, str], Cost]:
    """Costs by part and pass that `write_json` wrote; a UserError for any other."""
    try:
        return {(row.pop("part"), row.pop("pass")): Cost(**row)
                for row in json.loads(read_bytes(path))["parts"]}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give --against a file that "
                        "`albef plan --json FILE` wrote.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no plan by part; give --against a file that `albef plan "
                        "--json FILE` wrote.") from error


def comparison(before, after) -> str:
    """What changed, part by part: GB and milliseconds before and after, the largest gain first."""
    old, new = sums_of(before), sums_of(after)
    gains = {part: old.get(part, Cost()).seconds - new.get(part, Cost()).seconds
             for part in old | new}
    least = LEAST * sum(cost.seconds for cost in old.values())
    changed = sorted((part for part in gains if abs(gains[part]) >= least),
                     key=gains.get, reverse=True)
    groups = {part: [part] for part in changed}
    groups |= {"the others": gains.keys() - changed, "total": gains.keys()}
    rows = [("", "GB before", "after", "ms before", "after", "ms gained")]
    for name, parts in groups.items():
        one, other = (sum((sums.get(part, Cost()) for part in parts), Cost())
                      for sums in (old, new))
        rows.append((name, f"{one.bytes / 1e9:.3f}", f"{other.bytes / 1e9:.3f}",
                     f"{one.seconds * 1e3:.2f}", f"{other.seconds * 1e3:.2f}",
                     f"{1e3 * (one.seconds - other.seconds):+.2f}"))
    return "\nagainst the other plan\n" + aligned(rows, indent=2)
