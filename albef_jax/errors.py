"""The one exception that people are meant to read, and what others say in its sentences."""

LONGEST = 300  # characters of another error's message
INTERRUPTED = ("albef: interrupted; complete checkpoints are intact, and the same command goes on "
               "from the last one.")


class UserError(ValueError):
    """Something the user can mend; the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; every other exception is a bug
    and keeps its traceback.
    """


def first_line(error: BaseException | str) -> str:
    """What an error says, or its type if it says nothing: short, to stand inside a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST].strip().rstrip(".")


def listed(items, limit: int) -> str:
    """The first items, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
