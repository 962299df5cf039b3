"""One job at a time on a store: a lease on disk that expires, with a token that is read again before each commit."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from samdeblur.storage.files import write_durably

LEASE_SECONDS = 60.0


class StoreBusy(RuntimeError):
    """Another job holds the store, or has taken it over."""


class Lease:
    """Holds `<folder>/lease.json` and renews it in the background until it is released.

    A lease that was not renewed in time, or whose process is gone (same host), is free to take.

    Raises:
        StoreBusy: another job holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lease.json"
        self.token = uuid.uuid4().hex
        holder = self._read()
        if holder and not _is_free(holder):
            raise StoreBusy(
                f"{folder}: job {holder['pid']} on {holder['host']} is writing to this store; "
                f"wait for it, or for {LEASE_SECONDS:.0f} s after it died"
            )
        self._write()
        self.check()
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewal.start()

    def check(self) -> None:
        """Raise StoreBusy if another job took the store over."""
        if not self._is_mine():
            raise StoreBusy(f"{self._path.parent}: another job has taken this store over; this one stops")

    def release(self) -> None:
        self._released.set()
        self._renewal.join()
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 4):
            if not self._is_mine():
                return
            self._write()

    def _is_mine(self) -> bool:
        holder = self._read()
        return holder is not None and holder["token"] == self.token

    def _write(self) -> None:
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        write_durably(self._path, json.dumps(holder).encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return holder


def _is_free(holder: dict[str, Any]) -> bool:
    if time.time() - holder["renewed"] > LEASE_SECONDS:
        return True
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
