"""Reading a compiled program: what it multiplies, moves and communicates, loops counted in full.

XLA's own cost analysis counts the body of a loop once, and says nothing about collectives. Here
the text of the optimised program (`compiled.as_text()`, HLO) is read: one device's share of the
work, an instruction a line. Every instruction counts as often as the loops around it run.
"""

from collections.abc import Iterator
import functools
import math
import re
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
               "ragged-all-to-all", "collective-broadcast")
# Names for values that exist already, or the second half of something counted at its start.
_FREE = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while",
                   "conditional", "call", "async-start", "after-all", "partition-id",
                   "replica-id", "opt-barrier", "custom-call", "reshape"))
_SLICES = ("dynamic-slice", "slice", "gather")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")
_CALLED = re.compile(r"(?:calls|body|to_apply|branch_computations|true_computation|"
                     r"false_computation)=(?:\{([^}]*)\}|(%?[\w.\-]+))")
_DIMS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


class Array(NamedTuple):
    """An array in a program."""

    dims: tuple[int, ...]
    size: int  # bytes without padding
    main_memory: bool  # False in on-chip memory (VMEM, flags)


class Instruction(NamedTuple):
    """One line: `name = arrays opcode(operands), rest`, and the computation that it stands in."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    computation: dict

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes, or None."""
        found = re.search(pattern, self.rest)
        return found and found.group(1)

    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return [name for listed, single in _CALLED.findall(self.rest)
                for name in re.findall(r"[\w.\-]+", listed or single)]

    def operand(self, number: int) -> tuple[Array, ...]:
        """Arrays of an operand: `name`, or `name#2` for one of several; none if it is no name."""
        name, _, index = self.operands[number].partition("#")
        arrays = self.computation[name].arrays if name in self.computation else ()
        return arrays[int(index):int(index) + 1] if index else arrays

    def reads(self) -> list[Array]:
        """Arrays of all operands."""
        return [array for number in range(len(self.operands)) for array in self.operand(number)]

    def integer(self) -> int | None:
        """The value of an integer constant, else None."""
        constant = self.opcode == "constant" and re.fullmatch(r"-?\d+", self.operands[0])
        return int(self.operands[0]) if constant else None


class Collective(NamedTuple):
    """A kind of collective at one place of the program."""

    kind: str  # of `COLLECTIVES`
    times: int  # per step
    payload: int  # bytes of all that is reduced, gathered or exchanged, per device and time
    group: int  # devices that take part in one
    source: str  # the operation of the model that it comes from

    @property
    def wire(self) -> float:
        """Bytes that a device sends in a step by the best known algorithm (rings)."""
        if self.kind == "collective-permute":
            return self.times * self.payload
        passes = 2 if self.kind == "all-reduce" else 1  # a reduce-scatter and an all-gather
        return self.times * passes * self.payload * (self.group - 1) / self.group


class Work(NamedTuple):
    """What a leaf instruction costs, once: FLOPs of products, bytes to and from main memory."""

    instruction: Instruction
    times: int
    flops: float
    moved: float


class Program:
    """The parsed text of a compiled program, `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations, self.entry = {}, None
        current = None
        for line in text.splitlines():
            if line.startswith("  "):
                if current is not None and " = " in line:
                    instruction = _parse(line, current)
                    current[instruction.name] = instruction
            elif header := _HEADER.match(line):
                current = self.computations[header.group(2)] = {}
                if header.group(1):
                    self.entry = header.group(2)
            else:
                current = None

    def leaves(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Instruction, int]]:
        """Yields what runs, and how often; a fusion is one instruction."""
        for instruction in self.computations[name or self.entry].values():
            if instruction.opcode in ("while", "call", "conditional", "async-start"):
                rounds = self.trips(instruction) if instruction.opcode == "while" else 1
                for body in instruction.called():
                    yield from self.leaves(body, times * rounds)
            else:
                yield instruction, times

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, or its bound less its start; else 1."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")].values()
        bounds = [i.integer() for i in condition if i.integer() is not None]
        counter = next((i for i in condition if i.opcode == "get-tuple-element"), None)
        if len(bounds) != 1 or counter is None:
            return 1
        values = loop.computation[loop.operands[0]].operands
        start = loop.computation.get(values[int(counter.attribute(r"index=(\d+)"))])
        while start is not None and start.opcode in ("copy", "bitcast"):
            start = loop.computation.get(start.operands[0])
        return max(bounds[0] - ((start and start.integer()) or 0), 1)

    def collectives(self) -> list[Collective]:
        """All collectives; the compiler may overlap one with many fusions, it is counted once."""
        found = {}
        for leaf, times in self.leaves():
            # TPUs write a reduce-scatter as a fusion of an all-reduce and what each one keeps.
            scatter = any("all-reduce-scatter" in name for name in leaf.called())
            for instruction in self._inside(leaf):
                kind = instruction.opcode.removesuffix("-start")
                channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
                if kind in COLLECTIVES and times < found.get(channel, (times + 1,))[0]:
                    found[channel] = times, "reduce-scatter" if scatter else kind, instruction
        return [_collective(kind, instruction, times)
                for times, kind, instruction in found.values()]

    def _inside(self, leaf):
        """A leaf of `leaves`, or the instructions that it fuses."""
        if leaf.opcode != "fusion":
            yield leaf
            return
        for name in leaf.called():
            for instruction in self.computations[name].values():
                yield from self._inside(instruction)

    def work(self) -> Iterator[Work]:
        """Yields the cost of every leaf; FLOPs are those of matrix products and convolutions."""
        for leaf, times in self.leaves():
            if leaf.opcode.removesuffix("-start") in COLLECTIVES or leaf.opcode.endswith("-done"):
                continue
            flops = sum(map(_flops, self._inside(leaf)))
            moved = 0 if _is_free(leaf) else self._moved(leaf)
            if flops or moved:
                yield Work(leaf, times, flops, moved)

    def _moved(self, leaf):
        """Bytes that a leaf reads from and writes to main memory."""
        if leaf.opcode == "fusion":
            return self._moved_by_fusion(leaf)
        if leaf.opcode in _SLICES:
            return 2 * _bytes(leaf.arrays)
        if leaf.opcode == "dynamic-update-slice":
            return 2 * _bytes(leaf.operand(1))
        written = leaf.arrays[:1] if leaf.opcode.endswith("-start") else leaf.arrays
        if _is_kernel(leaf):  # may get an array several times, to read another part of it each time
            return _bytes(written) + _bytes(
                array for name in dict.fromkeys(leaf.operands)
                for array in leaf.operand(leaf.operands.index(name)))
        return _bytes(written) + _bytes(leaf.reads())

    def _moved_by_fusion(self, leaf):
        """As `_moved`: slices that are read, and pieces that are written, count for themselves.

        What a collective sends and receives beside the fused work, or what only passes through,
        is not touched.
        """
        body = self.computations[leaf.called()[0]]
        root = list(body.values())[-1]
        outputs = [body.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
        moved, updated = 0, set()
        for array, output in zip(leaf.arrays, outputs):
            if output is not None and output.opcode == "dynamic-update-slice":
                updated.add(output.operands[0])
                moved += array.main_memory * sum(a.size for a in output.operand(1))
            elif output is None or output.opcode not in ("parameter", *COLLECTIVES):
                moved += _bytes((array,))
        for name, read in body.items():
            if read.opcode == "parameter" and name not in updated:
                users = [i for i in body.values() if name in i.operands
                         and i.opcode not in ("tuple", *COLLECTIVES)]
                size = _bytes(read.arrays)
                if all(i.opcode in _SLICES and i.operands[0] == name for i in users):
                    size = min(size, sum(a.size for i in users for a in i.arrays))
                moved += size
        return moved


def _parse(line, computation):
    """An `Instruction` of a line; shapes of several arrays are in parentheses."""
    left, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    call = right.index("(", end + 1)
    close = _closing(right, call)
    inside = right[call + 1:close]
    operands = tuple(_OPERAND.findall(inside)) or (inside,)
    return Instruction(left.removeprefix("%"), _arrays(right[:end]), right[end + 1:call].strip(),
                       operands, right[close + 1:], computation)


def _closing(text, start):
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:200]!r}")


@functools.lru_cache(maxsize=4096)
def _arrays(shape):
    return tuple(
        Array(sizes, math.prod(sizes) * _bits(kind) // 8, not re.search(r"S\([1-9]", layout))
        for kind, dims, layout in _ARRAY.findall(shape)
        for sizes in [tuple(int(d) for d in dims.replace("<=", "").split(",") if d)])


def _bits(kind):
    """Bits of an element: the first number in the name of its type."""
    number = re.search(r"\d+", kind)
    return {"pred": 8, "token": 0}.get(kind) or (int(number.group()) if number else 0)


def _bytes(arrays):
    return sum(array.size for array in arrays if array.main_memory)


def _collective(kind, instruction, times):
    sent, group = sum(a.size for a in instruction.reads()), _group_size(instruction.rest)
    source = instruction.attribute(r'op_name="([^"]*)"') or instruction.name
    return Collective(kind, times, sent * group if kind == "all-gather" else sent, group, source)


def _group_size(attributes):
    """Devices that take part in one instance, in each of the three notations of HLO."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(iota.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed.group(1).count(",") + 1
    return 2  # a permutation has pairs


def _is_kernel(instruction):
    """Whether it is a kernel of Pallas."""
    return instruction.opcode == "custom-call" and "tpu_custom_call" in instruction.rest


def _is_free(instruction):
    return instruction.opcode in _FREE and not _is_kernel(instruction)


def _flops(instruction):
    """FLOPs of a product or convolution, 2 per multiply-add, and what a kernel says; else 0."""
    if _is_kernel(instruction):
        return float(instruction.attribute(r'"cost_estimate":\{"flops":"?(\d+)') or 0)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction)
    if instruction.opcode != "dot":
        return 0
    left, out = instruction.operand(0)[0].dims, instruction.arrays[0].dims
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
    return 2 * math.prod(out) * math.prod(left[int(axis)] for axis in contracted if axis)


def _convolution_flops(instruction):
    """FLOPs of a convolution, positions in padding and between dilated ones left out.

    TPUs write all products as convolutions, batch axes as windows that overlap in one place.
    """
    arrays = instruction.operand(0)[0], instruction.operand(1)[0], instruction.arrays[0]
    left, right, out = (dict(zip(labels, array.dims)) for labels, array in zip(
        _DIMS.search(instruction.rest).groups(), arrays))
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    products = right["i"] * out["f"] * (left["b"] // groups)
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    for axis in sorted(set(left) - {"b", "f"}):
        products *= _positions(window, int(axis), left[axis], right[axis], out[axis])
    return 2 * products


@functools.lru_cache(maxsize=4096)
def _positions(window, axis, size, kernel, out):
    """Pairs of output and kernel position that meet an element of the input, along one axis."""
    def along(name, default):
        found = re.search(rf"\b{name}=([\d_x\-]+)", window)
        return found.group(1).split("x")[axis] if found else default

    stride, low = int(along("stride", 1)), int(along("pad", "0_0").split("_")[0])
    gap, spread = int(along("lhs_dilate", 1)), int(along("rhs_dilate", 1))
    return sum(0 <= place <= (size - 1) * gap and place % gap == 0
               for k in range(kernel) for place in range(
                   k * spread - low, k * spread - low + out * stride, stride))
