"""Image files by name: listing folders, and matching two listings. Links are followed, hidden files left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from samdeblur.pipeline.sources.base import SourceError
from samdeblur.storage.pictures import SUFFIXES

NAMED = 8  # names in a message

Pairs = dict[str, tuple[Path | None, Path | None]]  # key -> blurred, sharp; None is a file that ought to be there
Files = dict[str, tuple[Path, Path]]
Identity = tuple[int, int]


def images_in(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their relative name without suffix, in no order.

    Raises:
        SourceError: two names that differ in their suffix alone, or a name that is not UTF-8.
        OSError: a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    outside = {path for start in (folder.absolute(), folder.resolve()) for path in start.parents}
    for name, path in _walk(str(folder), "", frozenset(_identity(path) for path in outside)):
        key, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES:
            continue
        if key in found:
            first, second = sorted((found[key].name, os.path.basename(path)))
            raise SourceError(
                f"{os.path.dirname(path)}/{second}: and {first} have the same name; keep one of them there"
            )
        if not key.isascii():
            _require_utf8(key, path)
        found[key] = Path(path)
    return found


def _walk(folder: str, prefix: str, above: frozenset[Identity]) -> Iterator[tuple[str, str]]:
    """Relative name and path of each file. A link to a folder that it lies in itself is not followed."""
    identity = _identity(folder)
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
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


def _require_utf8(key: str, path: str) -> None:
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{path!a}: the name is not UTF-8; rename it") from error


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def match_by_name(blurred: Mapping[str, Path], sharp: Mapping[str, Path]) -> Pairs:
    """Two listings as one, sorted."""
    return {key: (blurred.get(key), sharp.get(key)) for key in sorted(blurred.keys() | sharp.keys())}


def complete_pairs(pairs: Pairs, where: Path, skip_unpaired: bool) -> tuple[Files, str]:
    """The pairs of which both files are there, and a line on those left out, empty when there are none.

    Raises:
        SourceError: files are missing and not to be skipped, or no pair is left.
    """
    files = {key: (blurred, sharp) for key, (blurred, sharp) in pairs.items() if blurred and sharp}
    unpaired = [key for key in pairs if key not in files]
    if not unpaired:
        return files, ""
    named = ", ".join(f"{key} ({_lacking(*pairs[key])})" for key in unpaired[:NAMED])
    named += f" and {len(unpaired) - NAMED:,} more" if len(unpaired) > NAMED else ""
    count = f"{len(unpaired):,} image{'s' if len(unpaired) > 1 else ''}"
    if not skip_unpaired:
        raise SourceError(
            f"{where}: {count} without a counterpart: {named}; complete the folder or leave them out with "
            "--skip-unpaired"
        )
    if not files:
        raise SourceError(f"{where}: no pair is complete, {count} without a counterpart: {named}; complete the folder")
    return files, f"{count} left out without a counterpart: {named}"


def _lacking(blurred: Path | None, sharp: Path | None) -> str:
    return ", ".join(f"no {name}" for name, path in (("blurred", blurred), ("sharp", sharp)) if path is None)
