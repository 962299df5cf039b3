"""How blocks enter a store: a worker stages the shards of a block, the coordinator alone moves and indexes them.

A kill at any point loses at most blocks that were not committed; `index/state` is written last, so what it calls done
is complete and on the disk. Every change of a store goes through the fence of the job that holds it, so a job that was
suspended in the middle of a commit, and wakes when another has the store, changes nothing any more.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from samdeblur.storage.access.header import read_header
from samdeblur.storage.atoms import AtomMap, TooManyAtoms
from samdeblur.storage.files import PARTIAL, fsync_path
from samdeblur.storage.format.durable import DurableStore
from samdeblur.storage.format.layout import (
    ERROR_BYTES,
    MAX_PAIRS,
    MAX_RECORDS,
    NO_SHARD,
    PENDING,
    RECORD_COLUMNS,
    Header,
    finish_shard,
    leaving_out_zeros,
    pack_text,
    round_up,
    seal,
    writing_all_chunks,
)
from samdeblur.storage.writing.fenced import FencedStore
from samdeblur.storage.writing.lease import leased, run_folder

__all__ = [
    "Committer",
    "ImageContent",
    "ImageOutcome",
    "StagedBlock",
    "check_caps",
    "geometry_records",
    "pack_records",
    "run_folder",
    "stage_block",
    "staged_shard",
]

SHARD_DIGEST, EMBEDDINGS = OF_BLOCKS = "shard_digest", "embedding_digest"  # of the index, with a row for each block
RESIZING = "resizing.json"  # in the run folder: row -> height and width about to be written


@dataclass(frozen=True)
class ImageContent:
    """What is stored of one image.

    Attributes:
        atoms: the masks.
        records: column name -> (M,) float64; missing columns are stored as NaN.
        blurred, sharp: (H, W, 3) uint8 RGB, or None in a store without images.
        embeddings: the maps of the encoder, (crops, ...) each, in a store that keeps them.
    """

    atoms: AtomMap
    records: Mapping[str, NDArray[np.float64]]
    blurred: NDArray[np.uint8] | None = None
    sharp: NDArray[np.uint8] | None = None
    embeddings: Sequence[NDArray[np.float16]] = ()


@dataclass(frozen=True)
class ImageOutcome:
    """One row of the index."""

    state: int
    digest: bytes = bytes(32)
    counts: tuple[int, int, int] = (0, 0, 0)  # masks, atoms, pairs
    error: str = ""


@dataclass(frozen=True)
class StagedBlock:
    """A block whose shards lie, flushed, in a staging folder."""

    block: int
    staging: str
    outcomes: tuple[ImageOutcome, ...]
    shard_digests: tuple[bytes, ...]  # per data array; NO_SHARD where nothing was written


def check_caps(atoms: AtomMap) -> None:
    """Raise TooManyAtoms when a map does not fit into a row of the store."""
    if len(atoms.pairs) > MAX_PAIRS or atoms.n_masks > MAX_RECORDS:
        raise TooManyAtoms(
            f"{atoms.n_masks} masks and {len(atoms.pairs)} (atom, mask) pairs; a store holds at most {MAX_RECORDS} "
            f"and {MAX_PAIRS} per image"
        )


def geometry_records(atoms: AtomMap) -> dict[str, NDArray[np.float64]]:
    """Columns that follow from the masks alone: area and box, in pixels."""
    boxes = atoms.mask_boxes().astype(np.float64)
    return {"area": atoms.mask_areas().astype(np.float64)} | {f"bbox_{n}": boxes[:, i] for i, n in enumerate("xywh")}


def pack_records(records: Mapping[str, NDArray[np.float64]], n_masks: int) -> NDArray[np.float64]:
    """(M, F) float64 in the order of RECORD_COLUMNS."""
    missing = np.full(n_masks, np.nan)
    return np.stack([records.get(name, missing) for name in RECORD_COLUMNS], axis=1)


def stage_block(
    store: Path, header: Header, staging: Path, block: int, contents: Sequence[ImageContent | None]
) -> tuple[bytes, ...]:
    """Write the shards of a block into a staging folder and flush them.

    Args:
        store: the store the block is for; only its array metadata is read.
        header: the header of that store.
        staging: an empty or missing folder owned by this attempt alone.
        contents: one per image of the block; None for a quarantined image.

    Returns:
        The digest in each shard, in the order of `header.data_arrays()`.
    """
    images = header.block_range(block)
    building = staging / "building"
    digests = []
    for name, spec in header.data_arrays().items():
        stored = {at: _values(name, content) for at, content in enumerate(contents) if content is not None}
        used = round_up(max((len(values) for values in stored.values()), default=0), spec.chunks[1])
        rows = np.zeros((len(images), min(used, spec.shape[1]), *spec.shape[2:]), spec.dtype)
        for at, values in stored.items():
            rows[at][tuple(slice(side) for side in values.shape)] = values
        target = building / name
        target.mkdir(parents=True)
        shutil.copyfile(store / name / "zarr.json", target / "zarr.json")
        array = leaving_out_zeros(zarr.open_array(DurableStore(target), mode="r+"))
        array[images.start : images.stop, : rows.shape[1]] = rows  # chunks beyond are empty, and not written
        shard = target / spec.part_path(block)
        if not shard.exists():
            digests.append(NO_SHARD)
            continue
        digests.append(finish_shard(shard, spec))
        os.rename(target / "c" / str(block), staged_shard(staging, name))
        fsync_path(staged_shard(staging, name))
    shutil.rmtree(building)  # here, where several work, and not where one commits
    return tuple(digests)


def staged_shard(staging: Path, name: str) -> Path:
    """The folder of the shard of an array in a staging folder; it becomes that of the block in the store."""
    return staging / name.replace("/", "-")


def _values(name: str, content: ImageContent) -> NDArray[Any]:
    """What a data array holds of an image."""
    if name == "atoms":
        return content.atoms.atoms
    if name == "pairs":
        return content.atoms.pairs
    if name == "records":
        return pack_records(content.records, content.atoms.n_masks)
    of, _, which = name.partition("/")
    return content.embeddings[int(which)] if of == "embeddings" else getattr(content, which)


class Committer:
    """The one writer of a store's shards and index.

    Raises:
        StoreBusy: another job holds the store.
        StoreError, FileNotFoundError: no store there.
    """

    def __init__(self, store: Path) -> None:
        self.header = read_header(store)
        self._store = store
        self._folder = run_folder(store)
        self._reopened: set[int] = set()
        self.lease = leased(self._folder)
        self._fence = self.lease.fence
        self._fence.set_aside(self._folder / "staging")
        for leftover in (store / "index").rglob(f"*{PARTIAL}"):
            self._fence.set_aside(leftover)
        self._fence.tidy()
        for plan in self._fence.left_behind(RESIZING):
            self._resize(plan)

    def staging(self, block: int) -> Path:
        """The staging folder of this job's attempt at a block; several attempts each add a name of their own."""
        return self._folder / "staging" / f"{block}-{self.lease.token}"

    def pending_blocks(self) -> list[int]:
        """Blocks with an image that was not committed yet, and those reopened."""
        state = self._array("index/state")[:]
        return sorted({*(np.flatnonzero(state == PENDING) // self.header.block_size).tolist(), *self._reopened})

    def reopen(self, rows: Sequence[int], shapes: NDArray[np.int32]) -> None:
        """Take the blocks of these images for pending, and write down what sizes the images have by now.

        What a block holds stays, and is done, until the block is committed anew.

        Args:
            rows: positions of images.
            shapes: (len(rows), 2) int32, height and width; one that does not fit the extents of the store is left.

        Raises:
            StoreBusy: another job took the store over.
        """
        self.lease.check()
        known = np.asarray(self._array("index/shape")[:])
        fits = (shapes <= self.header.extent).all(axis=1) & (shapes > 0).all(axis=1)
        changed = fits & (shapes != known[list(rows)]).any(axis=1)
        if changed.any():  # written down before anything is undone, so that a job that is killed here is finished
            new = {int(row): shape.tolist() for row, shape, yes in zip(rows, shapes, changed, strict=True) if yes}
            plan = self._fence.keep(RESIZING, json.dumps(new).encode())
            self._resize(plan)
        self._reopened |= {row // self.header.block_size for row in rows}

    def _resize(self, plan: Path) -> None:
        """Sizes and the seal over them change together: what is to become of them is written down first."""
        new = json.loads(plan.read_bytes())
        self._write("index/shape", np.array([int(row) for row in new]), list(new.values()))
        root = self._store / "zarr.json"
        document = json.loads(root.read_bytes())
        keys, shapes = (np.asarray(self._array(f"index/{name}")[:]) for name in ("key", "shape"))
        document["attributes"]["seal"] = seal(self.header.attributes(), keys, shapes)
        self._fence.write(root, json.dumps(document, indent=2).encode())
        self._fence.set_aside(plan)
        self.header = read_header(self._store)

    def commit(self, blocks: Sequence[StagedBlock]) -> None:
        """Move staged shards into place, index them, then call them done; each step is on the disk before the next.

        What a block held before goes when all this is done; when a disk does not take it, it is put back.

        Raises:
            StoreBusy: another job took the store over; nothing is written from then on.
            OSError: a disk does not take it.
        """
        if not blocks:
            return
        self.lease.check()
        rows = np.concatenate([self.header.block_range(block.block) for block in blocks])
        places = np.array([block.block for block in blocks])
        before = self._indexed(rows, places) if self._reopened & {*places.tolist()} else {}
        moved: list[tuple[Path, Path | None]] = []
        try:
            if before:
                self._write("index/state", rows, [PENDING] * len(rows))
            for block in blocks:
                self._move_in(block, moved)
            for folder in {target.parent for target, _ in moved} | {target.parent.parent for target, _ in moved}:
                fsync_path(folder)
            self._write_index(self._index_of(blocks), rows, places)
        except OSError:
            self._put_back(moved)
            with suppress(OSError):  # a full disk: they stay pending, and are done again
                self._write_index(before, rows, places)
            raise
        for block in blocks:  # the attempts that came second, too
            self._reopened.discard(block.block)
            for attempt in (self._folder / "staging").glob(f"{block.block}-*"):
                shutil.rmtree(attempt, ignore_errors=True)
        self._fence.tidy()

    def _index_of(self, blocks: Sequence[StagedBlock]) -> dict[str, Sequence[Any]]:
        """What the index is to say of these blocks; the states last."""
        outcomes = [outcome for block in blocks for outcome in block.outcomes]
        digests = [[np.frombuffer(d, np.uint8) for d in block.shard_digests] for block in blocks]
        first = len(self.header.data_arrays()) - len(self.header.embeddings)
        of_embeddings = {EMBEDDINGS: [each[first:] for each in digests]} if self.header.embeddings else {}
        return {
            "digest": [np.frombuffer(o.digest, np.uint8) for o in outcomes],
            "counts": [o.counts for o in outcomes],
            "error": [pack_text(o.error, ERROR_BYTES) for o in outcomes],
            SHARD_DIGEST: [each[:first] for each in digests],
            **of_embeddings,
            "state": [o.state for o in outcomes],
        }

    def _indexed(self, rows: NDArray[np.int64], blocks: NDArray[np.int64]) -> dict[str, Sequence[Any]]:
        """What the index says of these blocks, as `_index_of`."""
        names = ("digest", "counts", "error", SHARD_DIGEST, *[EMBEDDINGS] * bool(self.header.embeddings), "state")
        found = ((name, self._array(f"index/{name}"), blocks if name in OF_BLOCKS else rows) for name in names)
        return {name: np.asarray(array.oindex[at]).tolist() for name, array, at in found}

    def _write_index(
        self, content: Mapping[str, Sequence[Any]], rows: NDArray[np.int64], blocks: NDArray[np.int64]
    ) -> None:
        for name, values in content.items():
            self._write(f"index/{name}", blocks if name in OF_BLOCKS else rows, values)

    def close(self) -> None:
        """Let the store go; what this job staged and did not commit is dropped."""
        for folder in (self._folder / "staging").glob(f"*-{self.lease.token}*"):
            shutil.rmtree(folder, ignore_errors=True)
        self.lease.release()
        for folder in (self._folder / "staging", self._folder):
            with suppress(OSError):  # missing, or not empty: another job's
                folder.rmdir()

    def _array(self, name: str) -> zarr.Array:
        return writing_all_chunks(zarr.open_array(FencedStore(self._store / name, self._fence), mode="r+"))

    def _write(self, name: str, rows: NDArray[np.int64], values: Sequence[Any]) -> None:
        array = self._array(name)
        array.oindex[rows] = np.asarray(values, array.dtype)

    def _move_in(self, block: StagedBlock, moved: list[tuple[Path, Path | None]]) -> None:
        """Move the shards of a block into place, each with the folder it has to itself.

        Adds each place to `moved`, and where what was there before (of a killed job, or done again) lies aside.
        """
        for name, digest in zip(self.header.data_arrays(), block.shard_digests, strict=True):
            target = self._store / name / "c" / str(block.block)
            target.parent.mkdir(exist_ok=True)
            moved.append((target, self._fence.set_aside(target)))
            if digest != NO_SHARD:
                self._fence.bring_in(staged_shard(Path(block.staging), name), target)

    def _put_back(self, moved: Sequence[tuple[Path, Path | None]]) -> None:
        for target, _ in moved:
            self._fence.set_aside(target)
        self._fence.tidy(but=[old for _, old in moved if old is not None])  # makes room, too
        for target, old in moved:
            if old is not None:
                self._fence.bring_in(old, target)
