"""One job at a time on a store: a lease on disk that expires, with a token that is read again before each commit."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path

from samdeblur.storage.files import write_durably

LEASE_SECONDS = 60.0


class StoreBusy(RuntimeError):
    """Another job holds the store, or has taken it over."""


class Lease:
    """Holds `<folder>/lease.json`. A lease whose process is gone (same host) or that was not renewed in time is free.

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

    def renew_when_due(self) -> None:
        if time.time() - self._renewed > LEASE_SECONDS / 4:
            self.check()
            self._write()

    def check(self) -> None:
        """Raise StoreBusy if another job took the store over."""
        holder = self._read()
        if not holder or holder["token"] != self.token:
            raise StoreBusy(f"{self._path.parent}: another job has taken this store over; this one stops")

    def release(self) -> None:
        holder = self._read()
        if holder and holder["token"] == self.token:
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._renewed = time.time()
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": self._renewed}
        write_durably(self._path, json.dumps(holder).encode())

    def _read(self) -> dict | None:
        try:
            return json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None


def _is_free(holder: dict) -> bool:
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
    return holder["pid"] == os.getpid()
