"""The one exception that people are meant to read."""


class UserError(ValueError):
    """Something the user can mend; the message says what is wrong, where, and what to do.

    The command line prints the message alone and exits with 2; every other exception is a bug
    and keeps its traceback.
    """
