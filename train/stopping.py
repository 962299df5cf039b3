"""Signals that ask a run to stop: noted, and acted on once a step is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class Stopped(Exception):
    """A run stopped by a signal, with its state saved. `by` is the signal."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.by = by


class StopRequest:
    """While open, the first of SIGTERM, SIGUSR1, SIGHUP and SIGINT is noted in `by`. A second SIGINT stops at once.

    In a thread other than the main one nothing is noted: Python gives signals to the main thread.

    Args:
        told: called within the handler of the first of them.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.by: int = 0
        self.told = told
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) == signal.SIG_IGN:  # nohup
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.by:
            self.by = number
            self.told()
