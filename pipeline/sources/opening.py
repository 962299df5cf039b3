"""From what a user names to a source: a folder in a known layout, or a source of this package by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from samdeblur.pipeline.sources.base import Source, SourceError
from samdeblur.pipeline.sources.folders import FolderSource
from samdeblur.pipeline.sources.layouts import LAYOUTS, Layout, detect_layout, list_split
from samdeblur.pipeline.sources.listing import complete_pairs
from samdeblur.pipeline.sources.own_layout import own_layout
from samdeblur.pipeline.sources.sample import SampleSource
from samdeblur.pipeline.sources.worlds import WorldSource
from samdeblur.storage.access.places import local_path
from samdeblur.storage.listing import is_empty
from samdeblur.storage.names import in_unicode, nfc
from samdeblur.storage.suffixes import LOSSY_SUFFIXES, SUFFIXES

# Sources of this package by name: (location, split) -> source.
EMBEDDED: dict[str, Callable[[str, str], Source]] = {"sample": SampleSource.of, "worlds": WorldSource.of}


def embedded(location: str) -> str:
    """Which source of this package a location names, a key of EMBEDDED, or "" where it is a folder.

    A family, such as worlds-long, gives way to a folder of that name.
    """
    name = location.split(":")[0]
    kind = name.split("-")[0]
    if kind not in EMBEDDED or (name != kind and os.path.exists(location)):
        return ""
    return kind


def open_source(
    location: str, split: str, layout: str = "auto", dataset: str | None = None, skip_unpaired: bool = False
) -> Source:
    """The source at a folder, or one of this package for `sample[-FAMILY]` and `worlds[-FAMILY][:COUNT[:SIZE]]`.

    Args:
        location: a folder, or the name of a source of this package.
        split: names the split; the native layouts have a folder or a list of this name.
        layout: a key of LAYOUTS or EMBEDDED, "auto", or "package.module:function" for one's own, see `own_layout`.
        dataset: name written into the store; by default that of the layout or the folder.
        skip_unpaired: leave out images without a counterpart instead of refusing the folder.

    Raises:
        FileNotFoundError: no such folder.
        SourceError: no images, unpaired names, unknown layout or split.
    """
    kind = embedded(location)
    if kind and layout in ("auto", kind):
        return EMBEDDED[kind](location, split)
    try:
        split, root = nfc(split), Path(os.path.realpath(local_path(location)))
    except ValueError:
        raise SourceError(f"{location}: an address; datasets are read from a folder, download it there") from None
    if not root.is_dir():
        if root.exists():
            raise SourceError(f"{location}: a file; name the folder of a dataset")
        raise FileNotFoundError(f"{location}: no such folder")
    if (root / "zarr.json").exists():
        raise SourceError(f"{location}: that is a mask store, not a dataset; name the folder of the images")
    if is_empty(root):
        raise SourceError(f"{location}: an empty folder; mount the disk of the dataset there, or name another folder")
    guessed = layout == "auto"
    layout = detect_layout(root, split) if guessed else layout
    how = _layout(layout)
    try:
        files, left_out = _files(location, root, split, how, layout, skip_unpaired)
    except SourceError as error:
        if not guessed:
            raise
        raise SourceError(f"{error} (taken for {layout}; --layout names another, see docs/datasets.md)") from error
    name = nfc(in_unicode(dataset or how.dataset or root.resolve().name))
    notes = [f"{name} {split}: {line}" for line in left_out]
    published = how.published.get(split, len(files))
    if len(files) != published:
        notes.append(f"{name} {split}: {len(files):,} pairs found, the published split has {published:,}")
    lossy = any(blurred.suffix.lower() in LOSSY_SUFFIXES for blurred, _ in files.values())
    return FolderSource(name, in_unicode(split), files, "file" if lossy else "pixels", root, tuple(notes))


def _layout(name: str) -> Layout:
    """Raises SourceError for a name that is none."""
    if ":" in name:
        return own_layout(name)
    if name not in LAYOUTS:
        known = ", ".join(["auto", *EMBEDDED, *LAYOUTS])
        raise SourceError(
            f"unknown layout {name!r}, choose from {known}, or name a function as package.module:function"
        )
    return LAYOUTS[name]


def _files(
    location: str, root: Path, split: str, layout: Layout, name: str, skip_unpaired: bool
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """The complete pairs of a split by key, and lines on those left out. Raises SourceError."""
    pairs = list_split(root, split, layout)
    if not pairs:
        raise SourceError(f"{location}: no images ({', '.join(sorted(SUFFIXES))}) in the {name} layout")
    return complete_pairs(pairs, root, skip_unpaired)
