"""Changes that only the owner of a folder can make, however long it was held up in the middle of them.

Every change is one rename out of, or into, a folder that has the owner's token in its name. Who takes over moves that
folder away first, so what a suspended job does when it goes on finds no such folder and changes nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samdeblur.storage.files import fsync_path, naming

PREFIX = "owner-"


class StoreBusy(RuntimeError):
    """Another job holds the store, or has taken it over."""


class Fence:
    """The folder `owner-<token>` of one owner, in a folder that several may want to own.

    Making it shuts out every owner before, whose folders move into it as `before-<n>`.
    """

    def __init__(self, folder: Path, token: str, of: str = "this store") -> None:
        self._of = of
        self._own = folder / f"{PREFIX}{token}"
        self._new, self._aside = self._own / "new", self._own / "aside"
        self._own.mkdir()
        self._new.mkdir()
        self._aside.mkdir()
        others = [path for path in folder.glob(f"{PREFIX}*") if path != self._own]
        for number, other in enumerate(others):
            with self._owned():
                os.rename(other, self._own / f"before-{number}")
        for left in [path for name in ("new", "aside") for path in self._own.glob(f"before-*/**/{name}")]:
            shutil.rmtree(left, ignore_errors=True)

    @property
    def holds(self) -> bool:
        return self._new.exists()

    def write(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        """Make a file, or replace it, durably. Raises StoreBusy; then the file is as it was."""
        made = self._new / uuid.uuid4().hex
        with self._owned(), naming(path):
            with open(made, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, path)
            fsync_path(path.parent)

    def bring_in(self, source: Path, target: Path) -> None:
        """Move a file or a folder to a name that is free, or a file over a file. Raises StoreBusy."""
        ready = self._new / uuid.uuid4().hex
        with self._owned():
            os.rename(source, ready)
            os.rename(ready, target)

    def set_aside(self, path: Path) -> Path | None:
        """Take a file or a folder away, if it is there: to where it lies until `tidy`. Raises StoreBusy."""
        aside = self._aside / uuid.uuid4().hex
        with self._owned():
            try:
                os.rename(path, aside)
            except FileNotFoundError:
                if not self.holds:
                    raise
                return None
        return aside

    def left_behind(self, name: str) -> Iterator[Path]:
        """Files of this name that earlier owners kept, and did not come to use."""
        yield from self._own.glob(f"before-*/**/{name}")

    def keep(self, name: str, data: bytes) -> Path:
        """Write a file that the next owner finds in `left_behind`. Raises StoreBusy."""
        self.write(self._own / name, data)
        return self._own / name

    def tidy(self, but: Collection[Path] = ()) -> None:
        """Delete what was set aside, but for some of it."""
        for path in self._aside.glob("*"):
            if path in but:
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Own it no longer; what `keep` wrote, and nobody set aside, stays for the next owner."""
        for folder in (self._new, self._aside):
            shutil.rmtree(folder, ignore_errors=True)
        for path, _, _ in os.walk(self._own, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(path)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self.holds:
                raise
            raise StoreBusy(f"{self._own.parent}: another job has taken {self._of} over; this one stops") from error
