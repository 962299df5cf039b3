"""Two listings of image files as pairs, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path

from samdeblur.pipeline.sources.base import SourceError
from samdeblur.storage.listing import ListingError, image_files, is_unread
from samdeblur.storage.plurals import counted

NAMED = 8  # names in a message

Pairs = dict[str, tuple[Path | None, Path | None]]  # key -> blurred, sharp; None is a file that ought to be there
Files = dict[str, tuple[Path, Path]]


def images_in(folder: Path) -> dict[str, Path]:
    """`image_files`, for sources. Raises SourceError, and OSError for a folder that cannot be read."""
    try:
        return image_files(folder)
    except ListingError as error:
        raise SourceError(str(error)) from error


def match_by_name(blurred: Mapping[str, Path], sharp: Mapping[str, Path]) -> Pairs:
    """Two listings as one, sorted."""
    return {key: (blurred.get(key), sharp.get(key)) for key in sorted(blurred.keys() | sharp.keys())}


def complete_pairs(pairs: Pairs, where: Path, skip_unpaired: bool) -> tuple[Files, list[str]]:
    """The pairs of which both files are there and in a form that is read, and a line on the others of each kind.

    Raises:
        SourceError: files are missing and not to be skipped, or no pair is left.
    """
    unread = {key: paths for key, paths in pairs.items() if any(path and is_unread(path) for path in paths)}
    there = {key: paths for key, paths in pairs.items() if key not in unread}
    files = {key: (blurred, sharp) for key, (blurred, sharp) in there.items() if blurred and sharp}
    unpaired = [f"{key} ({_lacking(*paths)})" for key, paths in there.items() if key not in files]
    lines = []
    if unpaired:
        lines.append(f"{_count(unpaired)} left out without a counterpart: {_named(unpaired)}")
        if not skip_unpaired:
            raise SourceError(
                f"{where}: {_count(unpaired)} without a counterpart: {_named(unpaired)}; pairs are matched by "
                "name: complete the folder, rename files, or leave these out with --skip-unpaired"
            )
    if unread:
        lines.append(f"{_count(unread)} left out in formats that are not read: {unread_forms(unread.values())}")
    if lines and not files:
        raise SourceError(f"{where}: no pair is complete, {'; '.join(lines)}; complete the folder")
    return files, lines


def unread_forms(found: Iterable[Iterable[Path | None]]) -> str:
    """The files in forms that are not read, counted by suffix, and what to do."""
    forms = Counter(path.suffix.lower() for paths in found for path in paths if path and is_unread(path))
    return f"{', '.join(f'{count:,} {suffix}' for suffix, count in sorted(forms.items()))}; convert them to PNG"


def _count(images: Sized) -> str:
    return counted(len(images), "image")


def _named(images: Sequence[str]) -> str:
    more = f" and {len(images) - NAMED:,} more" if len(images) > NAMED else ""
    return ", ".join(images[:NAMED]) + more


def _lacking(blurred: Path | None, sharp: Path | None) -> str:
    return ", ".join(f"no {name}" for name, path in (("blurred", blurred), ("sharp", sharp)) if path is None)
