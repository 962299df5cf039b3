"""Writing a store whose masks are at hand already: imported from files, or taken from other stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samdeblur.storage.access.places import what_lies_at
from samdeblur.storage.format.layout import CHUNK, DONE, MAX_PIXELS, Header, StoreError, pack_keys, round_up, seal
from samdeblur.storage.store import MaskStore, open_store
from samdeblur.storage.writing.commits import (
    Committer,
    ImageContent,
    ImageOutcome,
    StagedBlock,
    check_caps,
    run_folder,
    stage_block,
)
from samdeblur.storage.writing.creation import create_store, is_vacant

BLOCK_SIZE = 8
COMMIT_SECONDS = 1.0


@dataclass(frozen=True)
class Row:
    """One image of a store: its line of the index, and what is stored of it when it is done."""

    outcome: ImageOutcome
    content: ImageContent | None = None

    @classmethod
    def done(cls, content: ImageContent, digest: bytes = bytes(32)) -> Row:
        """Raises TooManyAtoms for masks beyond what a row of a store holds."""
        check_caps(content.atoms)
        counts = content.atoms.n_masks, content.atoms.n_atoms, len(content.atoms.pairs)
        return cls(ImageOutcome(DONE, digest, counts), content)


def new_extent(shapes: NDArray[np.int32]) -> tuple[int, int]:
    """Extents of a store for images of these heights and widths, (I, 2)."""
    height, width = (round_up(int(side)) for side in shapes.max(axis=0, initial=1))
    return height, width


def fitting(shapes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of (I, 2) heights and widths a store can hold together: all, or as many as there can be.

    Extents are the maxima of both sides, so one very wide and one very high image may exceed what a store takes, though
    each could be in one.
    """
    heights, widths = -(-shapes.T // CHUNK) * CHUNK
    if heights.max(initial=0) * int(widths.max(initial=0)) <= MAX_PIXELS:
        return np.ones(len(shapes), bool)
    kept = ((heights <= limit) & (widths <= MAX_PIXELS // limit) for limit in np.unique(heights[heights > 0]).tolist())
    return max(kept, key=np.count_nonzero)


def key_bytes(keys: Sequence[str]) -> int:
    return round_up(max(len(key.encode()) for key in keys), 16)


def fill_store(
    path: Path,
    header: Header,
    keys: Sequence[str],
    shapes: NDArray[np.int32],
    row: Callable[[int], Row],
    progress: Callable[[int], None] = lambda images: None,
) -> MaskStore:
    """Write a store image by image, or finish one that this began; a kill loses the blocks in work alone.

    Args:
        path: the new store.
        header: its attributes and sizes.
        keys, shapes: I names and (I, 2) int32 heights and widths.
        row: gives image number i; a row that is pending leaves it to be prepared.
        progress: called with the images of each group of blocks once it is on the disk.

    Raises:
        StoreError: something else lies there, a finished store too.
        StoreBusy: another job writes to it.
    """
    marker = run_folder(path) / "filling"  # says that what is there is this function's own, unfinished
    if not _begin(path, marker, header, keys, shapes):
        if not marker.exists():
            raise StoreError(f"{path}: something is there already{_what(path)}; choose another name")
        try:
            there = open_store(path).header
        except StoreError as error:
            raise StoreError(f"{path}: cannot be resumed ({error})") from error
        if there != header or there.seal != seal(header.attributes(), pack_keys(keys, header.key_bytes), shapes):
            raise StoreError(f"{path}: another store is there already; choose another name")
    committer = Committer(path)
    try:
        group: list[StagedBlock] = []
        last = time.monotonic()
        for block in committer.pending_blocks():
            rows = [row(position) for position in header.block_range(block)]
            staging = committer.staging(block)
            digests = stage_block(path, header, staging, block, [item.content for item in rows])
            group.append(StagedBlock(block, str(staging), tuple(item.outcome for item in rows), digests))
            if time.monotonic() - last > COMMIT_SECONDS:
                _commit(committer, group, progress)
                last = time.monotonic()
        _commit(committer, group, progress)
    finally:
        committer.close()
    marker.unlink(missing_ok=True)
    with suppress(OSError):  # what is in it is another's
        marker.parent.rmdir()
    return open_store(path)


def _begin(path: Path, marker: Path, header: Header, keys: Sequence[str], shapes: NDArray[np.int32]) -> bool:
    """Make the store where there is nothing; whether it was made here."""
    if not is_vacant(path):
        return False
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        create_store(path, header, keys, shapes)
    except FileExistsError:  # another job has just made it
        return False
    return True


def _what(path: Path) -> str:
    kind = what_lies_at(path).split(";")[0]
    return f", {kind}" if kind else ""


def _commit(committer: Committer, group: list[StagedBlock], progress: Callable[[int], None]) -> None:
    committer.commit(group)
    progress(sum(len(block.outcomes) for block in group))
    group.clear()
