"""Which files in a folder count, for everyone who lists one: sources, imports, images beside masks, evaluation.

Links are followed. Hidden files, and what operating systems and notebooks leave behind, never count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from samdeblur.storage.names import in_unicode, nfc
from samdeblur.storage.suffixes import SUFFIXES, UNREAD_SUFFIXES

CLUTTER = frozenset({
    "__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db",
    "desktop.ini", "__pycache__",
})  # fmt: skip

Identity = tuple[int, int]


class ListingError(ValueError):
    """A folder in which two files have the name of one image."""


def image_files(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their relative name in NFC without suffix, sorted.

    Files in forms that are not read (`is_unread`) are among them, unless another has their name.

    Raises:
        ListingError: two names that differ in their suffix, or in their form of Unicode, alone.
        OSError: a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    for name, path in files_in(folder):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES and suffix.lower() not in UNREAD_SUFFIXES:
            continue
        key = nfc(in_unicode(stem))
        other = found.get(key)
        if other is not None and is_unread(path):
            continue
        if other is not None and not is_unread(other):
            first, second = sorted((other, path))
            raise ListingError(f"{second}: and {first.name} have the same name; keep one of them there")
        found[key] = path
    return dict(sorted(found.items()))


def is_image(name: str) -> bool:
    """Whether a file counts and is an image, by its name."""
    return counts(name) and name.lower().endswith((*SUFFIXES, *UNREAD_SUFFIXES))


def is_unread(path: Path) -> bool:
    """Whether a file is an image in a form that is not read."""
    return path.suffix.lower() in UNREAD_SUFFIXES


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file below a folder that counts, in no order. Raises OSError."""
    outside = {path for start in (folder.absolute(), folder.resolve()) for path in start.parents}
    for name, path in _walk(str(folder), "", frozenset(_identity(path) for path in outside)):
        yield name, Path(path)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that count, sorted."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if counts(entry.name) and _is_folder(entry))


def is_empty(folder: Path) -> bool:
    """Whether nothing in a folder counts."""
    with os.scandir(folder) as entries:
        return not any(counts(entry.name) for entry in entries)


def counts(name: str) -> bool:
    """Whether a file or folder of this name counts."""
    return not name.startswith(".") and name.lower() not in CLUTTER


def _walk(folder: str, prefix: str, above: frozenset[Identity]) -> Iterator[tuple[str, str]]:
    """Relative name and path of each file. A link to a folder that it lies in itself is not followed."""
    identity = _identity(folder)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not counts(entry.name):
                continue
            if _is_folder(entry):
                yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {identity})
            elif entry.is_symlink() or entry.is_file():  # a link to nothing is said to be one when it is read
                yield prefix + entry.name, entry.path


def _identity(folder: str | Path) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
