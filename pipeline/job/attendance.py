"""Which workers of a scheduler are heard of, told by what it says of them now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

SILENT = 50.0  # seconds without a sign, of which workers give several a minute
LONGEST_LOOK = 15.0  # seconds between two looks; what is longer, this process was not there


class Attendance:
    """Seconds without a sign, by this process's own clock: that of the scheduler may be another.

    Attributes:
        paused: seconds for which all of them have taken no task, for lack of memory.
    """

    def __init__(self) -> None:
        self.paused = 0.0
        self._seen: dict[str, float] = {}
        self._without: dict[str, float] = {}
        self._looked = time.monotonic()

    def look(self, workers: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The addresses of those that are silent, of what a scheduler says of workers."""
        now = time.monotonic()
        seconds, self._looked = min(now - self._looked, LONGEST_LOOK), now
        before, self._seen = self._seen, {address: float(worker["last_seen"]) for address, worker in workers.items()}
        self._without = {
            address: self._without.get(address, 0.0) + seconds if before.get(address) == seen else 0.0
            for address, seen in self._seen.items()
        }
        all_paused = bool(workers) and all(worker.get("status") == "paused" for worker in workers.values())
        self.paused = self.paused + seconds if all_paused else 0.0
        return [address for address, without in self._without.items() if without > SILENT]
