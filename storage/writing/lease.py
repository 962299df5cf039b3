"""One job at a time on a store, or in the folder of a run: a lease that expires, and a fence for its changes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samdeblur.storage.files import printable
from samdeblur.storage.writing.fence import Fence, StoreBusy

LEASE_SECONDS = 60.0
LOCK_TRIES, LOCK_PAUSE = 100, 0.05  # seconds
TRIES = 10  # at a folder that others make and remove


def run_folder(store: Path) -> Path:
    """Where a job keeps what does not belong in the store: staging, lease, logs. On the file system of the store.

    Beside the store itself, not a link to it; in it, hidden, where the store is the top of a disk.
    """
    real = Path(os.path.realpath(store))
    if real.is_dir() and os.stat(real).st_dev != os.stat(real.parent).st_dev:
        return real / ".run"
    return real.with_name(f"{real.name}.run")


class Lease:
    """Holds `<folder>/lease.json` and renews it in the background until it is released.

    A lease that was not renewed in time, or whose process is gone (same host), is free to take. Changes go through
    `fence`, which whoever takes over shuts.

    Args:
        folder: where; it must exist.
        of: what it is a lease of, for messages.

    Raises:
        StoreBusy: another job holds it.
    """

    def __init__(self, folder: Path, of: str = "this store") -> None:
        self._path, self._of = folder / "lease.json", of
        self.token = uuid.uuid4().hex
        self._take()
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewal.start()

    def _take(self) -> None:
        with _exclusive_lock(self._path.parent):
            holder = _read(self._path)
            if holder and not _is_free(holder):
                raise StoreBusy(
                    f"{self._path.parent}: {_describe_holder(holder)} is writing to {self._of}; {self._advice(holder)}"
                )
            self.fence = Fence(self._path.parent, self.token, self._of)
            self.fence.write(self._path, self._document())
        self.check()

    def _advice(self, holder: Mapping[str, Any]) -> str:
        ahead = holder["renewed"] - time.time()
        if ahead <= LEASE_SECONDS:
            return f"wait for it, or for {LEASE_SECONDS:.0f} s after it died"
        return (
            f"it renewed its lease {duration(ahead)} from now by the clock of this machine, so one of the two clocks "
            f"is wrong: set them alike; if that job has ended, remove {self._path}"
        )

    def check(self) -> None:
        """Raise StoreBusy if another job took the store over."""
        if not self._is_mine():
            raise StoreBusy(f"{self._path.parent}: another job has taken {self._of} over; this one stops")

    def release(self) -> None:
        self._released.set()
        self._renewal.join()
        with suppress(StoreBusy, FileNotFoundError), _exclusive_lock(self._path.parent):
            self.fence.set_aside(self._path)
        self.fence.remove()

    def _renew(self) -> None:
        while not self._released.wait(LEASE_SECONDS / 4):
            with suppress(OSError), _exclusive_lock(self._path.parent):  # a disk that is away may come back in time
                if not self._is_mine():
                    return
                with suppress(StoreBusy):
                    self.fence.write(self._path, self._document())

    def _is_mine(self) -> bool:
        holder = _read(self._path)
        return holder is not None and holder["token"] == self.token and self.fence.holds

    def _document(self) -> bytes:
        holder = {"token": self.token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        return json.dumps(holder).encode()


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """One process at a time, of those that see each other's locks.

    It spares jobs that start together from shutting each other out; what keeps a store whole is the fence. So a file
    system without locks goes without, and a process that was suspended with the lock does not hold up others for long.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def leased(folder: Path, of: str = "this store") -> Lease:
    """The lease of a folder, which is made where it is missing. Raises StoreBusy."""
    for _ in range(TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who has just ended took the folder along
            return Lease(folder, of)
    raise StoreBusy(f"{folder}: other jobs keep starting and ending here; run again")


@contextmanager
def held(folder: Path, of: str) -> Iterator[Lease]:
    """A folder of results to oneself. The lease is in a hidden folder in it. Raises StoreBusy."""
    hidden = folder / ".lease"
    lease = leased(hidden, of)
    try:
        yield lease
    finally:
        lease.release()
        with suppress(OSError):  # another's by now
            hidden.rmdir()


def lease_holder(folder: Path) -> dict[str, Any] | None:
    """The host, pid and time of renewal of the job that holds the lease in a folder; None when none does."""
    holder = _read(folder / "lease.json")
    return None if holder is None or _is_free(holder) else holder


def _read(path: Path) -> dict[str, Any] | None:
    """What a lease says; None where there is none, or one that was cut off or damaged."""
    try:
        holder = json.loads(path.read_bytes())
        known = {"token": str(holder["token"]), "host": str(holder["host"]), "pid": int(holder["pid"])}
        return known | {"renewed": float(holder["renewed"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _describe_holder(holder: Mapping[str, Any]) -> str:
    return f"job {holder['pid']} on {printable(holder['host'])}"


def duration(seconds: float) -> str:
    """In the largest unit that fits: 90 -> 2 minutes."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _is_free(holder: dict[str, Any]) -> bool:
    if not time.time() - holder["renewed"] <= LEASE_SECONDS:  # or never, as nan
        return True
    if holder["host"] != socket.gethostname():
        return False
    return is_gone(holder["pid"])


def is_gone(pid: int) -> bool:
    """Whether this host has no such process any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
