"""How deep and how large the values of a pickle are, found without making any of them.

Hashing, comparing or printing a value follows everything in it: one that is nested a million times
ends the interpreter, and one whose parts are doubled forty times by a few hundred bytes never ends.
"""

import pickle
import pickletools

DEPTH = 64  # tuples in tuples; checkpoints of training have less than ten
SIZE = 10_000_000  # values in a value, each as often as it is met
BYTES = 1 << 28  # of a pickle

LEAF = (0, 1)  # depth and size of what holds nothing
RECALLS = {"GET", "BINGET", "LONG_BINGET"}
KEEPS = {"PUT", "BINPUT", "LONG_BINPUT"}


def check_pickle(data):
    """Raises pickle.UnpicklingError where a value would be too deep or too large, and ValueError
    where the pickle is damaged."""
    if len(data) > BYTES:
        raise pickle.UnpicklingError(f"its pickle has {len(data)} bytes")
    stack, memo = [], {}
    for code, argument, _ in pickletools.genops(data):
        if code.name in RECALLS:
            stack.append(memo.get(argument, LEAF))
        elif code.name in KEEPS:
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        else:
            _apply(stack, code)


def _apply(stack, code):
    """What an opcode takes from the stack, and what it leaves there."""
    before, after = code.stack_before, code.stack_after
    if code.name in ("MARK", "DUP"):
        stack.append(None if code.name == "MARK" else stack[-1])
        return
    if pickletools.markobject in before:
        place = len(stack) - 1 - stack[::-1].index(None)
        taken = stack[place + 1:]
        del stack[place:]
        before = before[:before.index(pickletools.markobject)]
    else:
        taken = []
    for _ in before:
        taken.append(stack.pop() or LEAF)
    depth = 1 + max((one[0] for one in taken), default=-1)
    size = 1 + sum(one[1] for one in taken)
    if depth > DEPTH or size > SIZE:
        raise pickle.UnpicklingError(f"its pickle holds a value of {size} parts, {depth} deep")
    stack += [(depth, size)] * len(after)
