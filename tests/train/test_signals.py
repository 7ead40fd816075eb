"""What Ctrl-C and SIGTERM do before and after there is something to save."""

from __future__ import annotations

import signal

import pytest

from flexiclip.train.processes.signals import Stopped, StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_leaves_at_once_before_the_first_step_and_is_noted_after_it(number: signal.Signals) -> None:
    with pytest.raises(Stopped), StopSignal():
        signal.raise_signal(number)
    with StopSignal() as stop:
        stop.defer()
        signal.raise_signal(number)
        assert stop.asked


def test_a_second_ctrl_c_leaves_at_once_and_a_second_sigterm_does_not() -> None:
    """A scheduler may send SIGTERM to the group and to the process: the save must go on."""
    with StopSignal() as stop:
        stop.defer()
        try:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pytest.fail("a second SIGTERM ends the save")
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop_signal_gives_the_old_handlers_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_stopped_is_no_error_that_a_library_could_swallow() -> None:
    assert issubclass(Stopped, BaseException)
    assert not issubclass(Stopped, Exception)
