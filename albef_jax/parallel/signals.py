"""How SIGTERM, Ctrl-C and the warnings of schedulers reach the training loop."""

import contextlib
import signal

from albef_jax.parallel import processes

# A preemption, Ctrl-C, a closed terminal, Ctrl-\, and what SLURM may be asked to send beforehand.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
           signal.SIGUSR2)


class Stopped(Exception):
    """A signal came while the run did something that can be given up."""


class StopFlag:
    """Set by the first of `SIGNALS`; the loop saves and ends. A second Ctrl-C interrupts.

    Of several processes any may get the signal; they agree where all of them stop.
    """

    def __init__(self):
        self._set, self._interrupting = False, False

    def is_set(self):
        """Whether to stop here; of several processes all ask, equally often."""
        return processes.agree(self._set)

    @contextlib.contextmanager
    def interrupting(self):
        """A signal inside raises `Stopped`: at once, or of several processes at `may_stop`."""
        global _interrupted
        self._interrupting, _interrupted = True, self
        try:
            self.may_stop()
            yield
        finally:
            self._interrupting, _interrupted = False, None

    def may_stop(self):
        """Raises `Stopped` if all processes stop here."""
        if self.is_set():
            raise Stopped("a signal came")

    def handle(self, number, _):
        """The signal handler."""
        if self._set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._set = True
        if self._interrupting and not processes.several():
            self._interrupting = False  # a second signal must not disturb the cleaning up
            raise Stopped("a signal came")


_interrupted = None  # the flag that is `interrupting`


def may_stop():
    """A place where several processes may give up what they do together: all pass it or none.

    Raises:
      Stopped: inside `StopFlag.interrupting`, if they stop here.
    """
    if _interrupted:
        _interrupted.may_stop()
    else:
        processes.agree(False)


@contextlib.contextmanager
def stop_signals():
    """Yields a `StopFlag` that is connected to the signals.

    What is ignored stays so: under `nohup` a run outlives its terminal.
    """
    flag = StopFlag()
    old = {number: signal.signal(number, flag.handle) for number in SIGNALS
           if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
