"""Checking a store: structure, index, tables, checksums. Every problem is named; nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samdeblur.storage.atoms import AtomMap
from samdeblur.storage.commits import NO_SHARD
from samdeblur.storage.layout import DONE, PENDING, QUARANTINED, ArraySpec, StoreError, pixel_digest, read_header
from samdeblur.storage.readers import Reader, open_reader, part_path
from samdeblur.storage.store import MaskStore, open_store


def verify_store(path: Path) -> Iterator[str]:
    """Yield one line for each problem found; nothing for a sound store.

    Checks the metadata of every array against the format, the checksum of every shard, and for every image that is
    done the tables against the label plane and the digest against the stored blurred image.
    """
    try:
        reader = open_reader(path)
        header = read_header(path, reader)
        wrong = list(_metadata_problems(path, reader, header.index_arrays() | header.data_arrays()))
        yield from wrong
        if wrong:
            return
        store = open_store(path)
        if len(set(store.keys)) != len(store):
            yield f"{path}/index/key: keys are not unique"
            return
        for key in store:
            store.error(key)
            store.digest(key)
    except (FileNotFoundError, StoreError, UnicodeDecodeError) as error:
        yield str(error)
        return
    except ValueError as error:
        yield f"{path}: not a mask store ({error})"
        return
    damaged = set()
    for block in range(header.n_blocks):
        for problem in _shard_problems(path, store, block):
            damaged.add(block)
            yield problem
    for position, key in enumerate(store.keys):
        state = int(store.states[position])
        if state not in (PENDING, DONE, QUARANTINED):
            yield f"{path}/index/state: {key} has the unknown state {state}"
        if state == DONE and position // header.block_size not in damaged:
            try:
                yield from (f"{path}: {key}: {problem}" for problem in _image_problems(store, position, key))
            except (StoreError, ValueError, IndexError) as error:
                yield f"{path}: {key}: {error}"


def _metadata_problems(path: Path, reader: Reader, arrays: dict[str, ArraySpec]) -> Iterator[str]:
    for group in sorted({name.split("/")[0] for name in arrays if "/" in name}):
        if path.is_dir() and not (path / group / "zarr.json").exists():
            yield f"{path / group / 'zarr.json'}: missing"
    for name, spec in arrays.items():
        file = path / name / "zarr.json"
        try:
            metadata = reader.metadata(name)
            found = (metadata["shape"], metadata["data_type"], metadata["chunk_grid"]["configuration"]["chunk_shape"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            yield f"{file}: cannot be read ({type(error).__name__})"
            continue
        expected = (list(spec.shape), spec.dtype, list(spec.shards or spec.chunks))
        if found != expected:
            yield f"{file}: shape, type and grid are {found}, the format asks for {expected}"


def _shard_problems(path: Path, store: MaskStore, block: int) -> Iterator[str]:
    for (name, spec), digest in zip(store.header.data_arrays().items(), store.shard_digests[block], strict=True):
        shard = path / name / part_path(block, len(spec.shape))
        there, expected = store.reader.has(name, block), digest.tobytes()
        rows = store.header.block_range(block)
        images = f"images {store.keys[rows[0]]} to {store.keys[rows[-1]]}"
        if expected == NO_SHARD:
            if there and path.is_dir() and (store.states[rows.start : rows.stop] != PENDING).any():
                yield f"{shard}: not in the index ({images})"
        elif not there:
            yield f"{shard}: missing ({images})"
        elif (found := store.reader.digest(name, block)) is not None and found != expected:
            yield f"{shard}: does not match its checksum ({images})"


def _image_problems(store: MaskStore, position: int, key: str) -> Iterator[str]:
    n_masks, n_atoms, n_pairs = (int(n) for n in store.counts[position])
    found: AtomMap = store.atoms(key)
    pairs = found.pairs.astype(np.int64)
    order = pairs[:, 0] * 65536 + pairs[:, 1]
    if len(pairs) != n_pairs or (np.diff(order) <= 0).any():
        yield "pairs are not sorted or repeat"
    if len(pairs) and (pairs[:, 1].max() >= n_masks or pairs[:, 0].min() < 1):
        yield "pairs name a mask or an atom that does not exist"
        return
    used = np.unique(found.atoms)
    if not np.array_equal(used[used > 0], np.arange(1, n_atoms + 1)) or not np.array_equal(
        np.unique(pairs[:, 0]), np.arange(1, n_atoms + 1)
    ):
        yield "atoms of the label plane, of the table and of the index differ"
        return
    records = store.records(key)
    if not np.array_equal(records["area"], found.mask_areas()):
        yield "areas of the records differ from the masks"
    if not np.array_equal(found.mask_boxes(), np.stack([records[f"bbox_{c}"] for c in "xywh"], axis=1)):
        yield "boxes of the records differ from the masks"
    checkable = store.header.images and store.header.digest == "pixels"
    if checkable and pixel_digest(store.image("blurred", key)) != store.digest(key):
        yield "the stored blurred image does not match its digest"
