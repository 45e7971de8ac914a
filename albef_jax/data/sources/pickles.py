"""Pickles of other people, read without the power to run anything."""

import io
import pickle


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, texts, bytes and numbers; anything else could run code, and is refused.

    Protocol 2 writes bytes as a call of `_codecs.encode(text, "latin1")`, which is the only name
    that is known.
    """

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _latin1(text, encoding):
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it calls _codecs.encode for something else than bytes")
    return text.encode("latin1")


def plain_pickle(contents: bytes):
    """The lists, dicts, texts, bytes and numbers of a pickle; texts of Python 2 are Latin-1.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    try:
        return _Plain(io.BytesIO(contents), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError,
            ImportError, MemoryError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
