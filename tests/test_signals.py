"""Stop signals: the first one ends in order, later ones do not break the clean-up, and a third ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from ponita_ff.signals import Terminated, exit_code, stop_between_steps, stop_by_exception

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def send(number: int) -> None:
    """A signal to this process, whose handler has run when this returns."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


@pytest.mark.parametrize(("number", "kind"), SIGNALS.items())
def test_a_signal_becomes_an_exception(
    number: int, kind: type[KeyboardInterrupt], capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    cleaned = False
    with pytest.raises(kind) as caught, stop_by_exception():
        try:
            send(number)
        finally:
            send(signal.SIGINT)  # does not break off the clean-up
            cleaned = True
    assert cleaned and exit_code(caught.value) == 128 + number
    assert "once more ends it at once" in capfd.readouterr().err
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_third_signal_ends_at_once() -> None:
    program = """
import os, signal, time
from ponita_ff.signals import stop_by_exception
signal.signal(signal.SIGINT, signal.default_int_handler)  # where tests run in the background, it is ignored
with stop_by_exception():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(("number", "kind"), SIGNALS.items())
def test_between_steps_the_first_is_noted_and_the_second_acts(number: int, kind: type[KeyboardInterrupt]) -> None:
    with pytest.raises(kind), stop_by_exception(), stop_between_steps() as stop:
        assert stop.number is None
        send(number)
        assert stop.number == number and type(stop.error()) is kind
        send(number)
        pytest.fail("the second signal did not act")


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as by nohup
    try:
        with stop_by_exception(), stop_between_steps() as stop:
            send(signal.SIGTERM)
        assert stop.number is None
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_set_no_handlers() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with stop_by_exception(), stop_between_steps():
                pass
        except BaseException as error:  # for the assertion in the main thread
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
