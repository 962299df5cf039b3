"""One job at a time on a store: a lease on disk that expires, with a token that is read again before each commit."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        self._take()
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewal.start()

    def _take(self) -> None:
        with _alone_in(self._path.parent):
            holder = _read(self._path)
            if holder and not _is_free(holder):
                raise StoreBusy(
                    f"{self._path.parent}: job {holder['pid']} on {holder['host']} is writing to this store; "
                    f"wait for it, or for {LEASE_SECONDS:.0f} s after it died"
                )
            write_durably(self._path, self._document())
        self.check()

    def check(self) -> None:
        """Raise StoreBusy if another job took the store over."""
        if not self._is_mine():
            raise StoreBusy(f"{self._path.parent}: another job has taken this store over; this one stops")

    def release(self) -> None:
        self._released.set()
        self._renewal.join()
        with _alone_in(self._path.parent):
            if self._is_mine():
                self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 4):
            with suppress(OSError), _alone_in(self._path.parent):  # a disk that is away may come back in time
                if not self._is_mine():
                    return
                write_durably(self._path, self._document())

    def _is_mine(self) -> bool:
        holder = _read(self._path)
        return holder is not None and holder["token"] == self.token

    def _document(self) -> bytes:
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        return json.dumps(holder).encode()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """One process at a time, of those that see each other's locks; a file system without locks goes without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lease_holder(folder: Path) -> dict[str, Any] | None:
    """The host, pid and time of renewal of the job that holds the lease in a folder; None when none does."""
    holder = _read(folder / "lease.json")
    return None if holder is None or _is_free(holder) else holder


def _read(path: Path) -> dict[str, Any] | None:
    try:
        holder: dict[str, Any] = json.loads(path.read_text())
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
