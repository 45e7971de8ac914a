"""The one exception that people are meant to read, and what others say in its sentences."""

import contextlib
import numbers

LONGEST = 300  # characters of another error's message
# What numbers become on a device holds no more.
INT32, FLOAT32 = 2**31 - 1, 3.4e38
MISSING = "{} needs the package {}; install it with pip install 'albef_jax[{}]'."
INTERRUPTED = ("albef: interrupted; complete checkpoints are intact, and the same command goes on "
               "from the last one.")


class UserError(ValueError):
    """Something the user can mend; the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; every other exception is a bug
    and keeps its traceback.
    """


class CodeError(UserError):
    """What a Python file of the user's raised, its `__cause__`: its traceback is shown below.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: str, error: BaseException):
        super().__init__(f"{path} failed with {type(error).__name__} ({first_line(error)}); mend "
                         "the line that the traceback below ends with.")
        self.path = path


@contextlib.contextmanager
def running(path: str):
    """Around code of a Python file of the user's: what it raises becomes a `CodeError`."""
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(f"{path} ends the program (it calls sys.exit); leave that out, or raise an "
                        "exception that says why.") from error
    except Exception as error:
        raise CodeError(path, error) from error


def first_line(error: BaseException | str) -> str:
    """What an error says, or its type if it says nothing: short, to stand inside a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:LONGEST].strip().rstrip(".")


def listed(items, limit: int) -> str:
    """The first items, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def shown(value) -> str:
    """A value inside a sentence, in one line that is not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def wanted(value, like, limit=None, known=None) -> str:
    """What a value must be, in words such as 'a number, at least 0'; '' if it is that.

    Args:
      like: a value of its type: a bool, a whole number, a float (any finite number will do), a
        text, or a tuple of one of these; None: it may be anything.
      limit: least and most of a number, or of each number of a tuple, whole ones if the least is;
        a most of None: what a device can hold.
      known: the values to choose from, for each item of a tuple.
    """
    if isinstance(like, (tuple, list)):
        return _wanted_tuple(value, like, limit, known)
    if known is not None:
        *others, last = map(repr, known)
        choice = f"{', '.join(others)} or {last}" if others else last
        # 1 and True are equal, and not the same choice.
        return "" if any(value == one and type(value) is type(one) for one in known) else choice
    if isinstance(like, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(like, (int, float)):
        return _wanted_number(value, isinstance(like, int), *(limit or (None, None)))
    if isinstance(like, str):
        return "" if isinstance(value, str) else "a text"
    return ""


def _wanted_tuple(value, like, limit, known):
    item = "" if known else limit[0] if limit else next(
        (one for one in like if isinstance(one, float)), like[0] if like else None)
    is_tuple = isinstance(value, (tuple, list))
    if is_tuple and not any(wanted(one, item, limit, known) for one in value):
        return ""
    each = wanted(None, item, limit, known)
    return f"a tuple, each item {each}" if each else "a tuple"


def _wanted_number(value, whole, least, most):
    largest = INT32 if whole else FLOAT32
    is_number = (isinstance(value, numbers.Integral if whole else numbers.Real)
                 and not isinstance(value, bool))
    top, bottom = largest if most is None else most, -largest if least is None else least
    if is_number and bottom <= value <= top:
        return ""
    kind = "a whole number" if whole else "a number"
    if most is None and not (is_number and value > top):
        return kind if least is None else f"{kind}, at least {least:g}"
    return f"{kind}, from {bottom:g} to {top:g}" if not whole else f"{kind}, from {bottom} to {top}"
