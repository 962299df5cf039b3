"""Bytes of the files under a location, whole or by range: those on a disk, and the choice of what reads the rest."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from samdeblur.storage.access.location import BUCKETS, HUB, Location

TIMEOUT = 60.0  # seconds for one answer, further tries included

Part = slice | None  # slice(start, stop), slice(-n, None) for the end, None for all


class Unreachable(ConnectionError):
    """A server that does not answer, refuses, or cannot send parts of files."""


class Refused(Unreachable):
    """A server that answers, and does not give this file."""


class Files(Protocol):
    """The files under a location."""

    gap: int  # bytes between two parts of a file that are fetched rather than asked around

    def get_all(self, wanted: Sequence[tuple[str, Part]]) -> list[bytes | None]:
        """Files, or parts of them, by their paths, all at once.

        None when a file is not there; nothing, or less than was asked for, when it is shorter.

        Raises:
            Unreachable: no answer in time, a refusal, or a server that cannot send parts.
        """
        ...


def fetch_spans(files: Files, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Parts of files, (path, first byte, last byte exclusive); neighbours within `files.gap` in one request.

    Shorter than asked for, or nothing, where a file is shorter or not there.
    """
    groups: list[tuple[str, int, int]] = []
    for name, first, last in sorted({span for span in wanted if span[1] < span[2]}):
        if groups and groups[-1][0] == name and first <= groups[-1][2] + files.gap:
            groups[-1] = (name, groups[-1][1], max(last, groups[-1][2]))
        else:
            groups.append((name, first, last))
    contents = files.get_all([(name, slice(first, last)) for name, first, last in groups])
    found = []
    for name, first, last in wanted:
        if first >= last:
            found.append(b"")
            continue
        group = bisect_right(groups, (name, first, math.inf)) - 1
        start = groups[group][1]
        found.append((contents[group] or b"")[first - start : last - start])
    return found


def open_files(folder: Location) -> Files:
    """The files of a folder. Raises Unreachable, and ValueError where a package is missing."""
    if not folder.remote:
        return Disk(folder.path)
    if folder.scheme in BUCKETS:
        from samdeblur.storage.access.buckets import Bucket

        return Bucket(folder)
    from samdeblur.storage.access.web import Web

    if folder.scheme in HUB:
        from samdeblur.storage.access.hub import hub_address

        return Web(*hub_address(folder), shown=folder)
    return Web(folder)


class Disk:
    """A folder on a disk."""

    gap = 4096

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get_all(self, wanted: Sequence[tuple[str, Part]]) -> list[bytes | None]:
        found: list[bytes | None] = []
        descriptor, opened = -1, None
        try:
            for name, part in wanted:
                if name != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    descriptor, opened = _open(self._folder / name), name
                found.append(None if descriptor < 0 else _read(descriptor, part))
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return found


def _open(path: Path) -> int:
    """A descriptor; -1 for what is not there."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is no file to wait for
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _read(descriptor: int, part: Part) -> bytes:
    size = os.fstat(descriptor).st_size
    first, last, _ = (part or slice(None)).indices(size)
    pieces = []
    while first < last:  # one read gives at most 2 GB
        piece = os.pread(descriptor, last - first, first)
        if not piece:
            break
        pieces.append(piece)
        first += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
