"""Which signals let a run save and end, and which it leaves alone."""

import os
import signal

import pytest

from albef_jax.parallel.signals import SIGNALS, Stopped, stop_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_asks_for_an_end_is_heard(number):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        with pytest.raises(Stopped), stop.interrupting():
            raise AssertionError("an evaluation began after the signal")
    assert signal.getsignal(number) is before


def test_a_run_that_was_told_to_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
