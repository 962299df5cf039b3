"""Processes that work for this one: started without its script, gone when it is, found out when they fall silent."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

LONGEST_LOOK = 5.0  # seconds between two looks; what is longer, this process was not there


class Note(UserWarning):
    """What someone who waits for a program wants to know; a command says it in a line."""


def end_with(process: int) -> None:
    """End this process as soon as another has ended, whatever ended that."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)
    except (OSError, AttributeError):  # an old kernel, or another system
        return
    threading.Thread(target=_end_when_readable, args=(descriptor,), daemon=True).start()


def _end_when_readable(descriptor: int) -> None:
    select.select([descriptor], [], [])  # readable once the process has ended
    os._exit(1)


@contextmanager
def without_script() -> Iterator[None]:
    """Children that Python starts in here do not run the script of this process first.

    They would, to find what it defines, and one without `if __name__ == "__main__":` would start children in each of
    its children. What is sent to ours is defined in packages.
    """
    main = sys.modules["__main__"].__dict__
    before: dict[str, Any] = {name: main[name] for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main |= before


class Pulse:
    """Whether a process of this machine does anything, that is, uses the processor."""

    def __init__(self, process: int) -> None:
        self.process = process
        self._used = -1.0
        self._seconds, self._looked = 0.0, time.monotonic()

    @property
    def suspended(self) -> bool:
        with suppress(psutil.Error):
            return psutil.Process(self.process).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
        return False

    def silence(self) -> float:
        """Seconds for which it did nothing, for one who looks every few. Those for which this process was suspended as
        well do not count.
        """
        used = self._used
        with suppress(psutil.Error):
            times = psutil.Process(self.process).cpu_times()
            used = times.user + times.system
        now = time.monotonic()
        self._seconds = self._seconds + min(now - self._looked, LONGEST_LOOK) if used == self._used else 0.0
        self._used, self._looked = used, now
        return self._seconds


def how_it_ended(code: int | None) -> str:
    """The exit code of a process in words."""
    if code is None or code >= 0:
        return f"ended with {code}"
    reason = {
        int(signal.SIGKILL): ": usually memory ran out",
        int(signal.SIGBUS): ": usually shared memory or a disk ran out",
    }.get(-code, "")
    return f"was ended by signal {-code} ({signal.Signals(-code).name}){reason}"
