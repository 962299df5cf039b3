"""A program that is asked to stop does so within seconds, whatever it waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

ENDS = (signal.SIGTERM, signal.SIGHUP)
STREAMS = (0, 1, 2)


class SignalledToEnd(KeyboardInterrupt):
    """A signal asks the program to end: Ctrl-C by another name."""


@contextmanager
def ends_when_signalled(grace: float, code: int, left: str) -> Iterator[None]:
    """In here SIGTERM and SIGHUP raise SignalledToEnd. Code that catches signals itself has to end too.

    Args:
        grace: seconds after which a program that is still there, since a disk or a device does not answer, is ended.
        code: the exit code then.
        left: what it leaves, for the line that says so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    once = _RaiseOnce()
    before = {n: signal.signal(n, once) for n in ENDS if signal.getsignal(n) != signal.SIG_IGN}  # as by nohup
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()
    terminals = [number for number in STREAMS if _is_terminal(number)]

    def watch() -> None:  # signals reach a thread even while the main one is in a library that does not return
        while numbers := os.read(reading, 64):
            if signal.SIGHUP in numbers:
                _discard_output(terminals)
            if not set(numbers).isdisjoint(before) and not over.wait(grace):
                with suppress(OSError, ValueError):
                    click.echo(f"error: asked to stop, but still busy after {grace:.0f} s; {left}", err=True)
                os._exit(code)
        os.close(reading)

    threading.Thread(target=watch, name="ending", daemon=True).start()
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        over.set()
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


class _RaiseOnce:
    """Raises SignalledToEnd the first time; what cleans up after that is left alone."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.raised:
            self.raised = True
            raise SignalledToEnd


def leave(code: int, seconds: float) -> None:
    """End with this code even if something holds up the end of the interpreter, such as a thread in a library."""
    last = threading.Timer(seconds, os._exit, [code])
    last.daemon = True
    last.start()


def _is_terminal(number: int) -> bool:
    with suppress(OSError):
        return os.isatty(number)
    return False


def _discard_output(terminals: list[int]) -> None:
    """Write to nowhere what would go to a terminal that was closed."""
    for number in terminals:
        if not _is_terminal(number):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            os.close(nowhere)
