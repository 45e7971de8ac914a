"""How SIGTERM and Ctrl-C reach the training loop."""

import contextlib
import signal


class Stopped(Exception):
    """A signal came while the run did something that can be given up."""


class StopFlag:
    """Set by SIGTERM or the first Ctrl-C; the loop saves and ends. A second Ctrl-C interrupts."""

    def __init__(self):
        self._set, self._interrupting = False, False

    def is_set(self):
        """Whether a signal has come."""
        return self._set

    @contextlib.contextmanager
    def interrupting(self):
        """A signal inside raises `Stopped` at once."""
        self._interrupting = True
        try:
            if self._set:
                raise Stopped
            yield
        finally:
            self._interrupting = False

    def handle(self, number, _):
        """The signal handler."""
        if self._set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._set = True
        if self._interrupting:
            self._interrupting = False  # a second signal must not disturb the cleaning up
            raise Stopped


@contextlib.contextmanager
def stop_signals():
    """Yields a `StopFlag` that is connected to the signals."""
    flag = StopFlag()
    old = {number: signal.signal(number, flag.handle)
           for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
