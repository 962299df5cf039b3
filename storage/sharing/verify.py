"""Checking a store against the format: metadata, index, shards, tables, records. Every problem is named; nothing is
changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.storage.access.files import Unreachable
from samdeblur.storage.access.header import claimed_header, document_problems
from samdeblur.storage.access.location import Location, without_secrets
from samdeblur.storage.access.readers import Reader, open_reader
from samdeblur.storage.atoms import MAX_ATOMS, from_window
from samdeblur.storage.files import sha256_file
from samdeblur.storage.format.layout import (
    DONE,
    EMBEDDING_DIGEST,
    MAX_PAIRS,
    MAX_RECORDS,
    NO_SHARD,
    PENDING,
    STATE_NAMES,
    Header,
    StoreError,
    pixel_digest,
    seal,
    unpack_keys,
)
from samdeblur.storage.store import MaskStore, StoreDamaged

SHOWN = 6  # images named in one line


def verify_store(location: str | Path) -> Iterator[str]:
    """Yield one line for each problem found; nothing for a sound store.

    Checks the checksum file beside a share, the metadata of every array against the format, every chunk of the index,
    the digest of every shard (naming the images that a damaged one hits), and of every image that is done the tables
    against the label plane, the records against the masks, and the digest against the stored blurred image.

    Raises:
        Unreachable: a server that does not answer, or sends no parts of files.
    """
    try:
        place = Location(str(location))
    except ValueError as error:
        yield f"{without_secrets(str(location))}: not a mask store ({error})"
        return
    yield from _checksum_problems(place)
    try:
        reader = open_reader(place)
        stray = [f"{place / name}: does not match the checksum of the zip" for name in reader.stray()]
        header, documents = claimed_header(reader)
    except FileNotFoundError as error:
        yield str(error)
        return
    except Unreachable:
        raise
    except (OSError, ValueError) as error:
        yield f"{place}: not a mask store ({error})"
        return
    problems = [f"{place}/{problem}" for problem in document_problems(header, documents, exact=True)]
    problems = problems or list(_index_problems(place, reader, header))
    if problems:
        yield from problems + stray
        return
    try:
        store = MaskStore(location, (place, reader, header))
    except StoreDamaged as error:
        yield str(error)
        return
    sound = True
    for block in range(header.n_blocks):
        damaged = False
        for problem in _shard_problems(store, block):
            damaged = True
            yield problem
        sound = sound and not damaged
        for position in () if damaged else header.block_range(block):  # the shards are still at hand
            key = store.keys[position]
            try:
                yield from (f"{place}: {key}: {problem}" for problem in _image_problems(store, position, key))
            except (StoreError, ValueError, IndexError) as error:
                yield f"{place}: {key}: {error}"
    if sound:  # or they are named with what they hit
        yield from stray


def _checksum_problems(place: Location) -> Iterator[str]:
    """A share beside its .sha256."""
    if place.remote or not place.path.is_file():
        return
    checksum = place.path.with_name(place.name + ".sha256")
    if checksum.exists():
        stated = checksum.read_bytes().split(b" ")[0]
        if stated != sha256_file(place.path).hex().encode():
            yield f"{place}: does not match {checksum.name}"


def _index_problems(place: Location, reader: Reader, header: Header) -> Iterator[str]:
    """Chunks of the index that cannot be read, and contents that cannot be."""
    index: dict[str, Any] = {}
    for name, spec in header.index_arrays().items():
        try:
            index[name] = reader.read(name, spec, ...)
        except Unreachable:
            raise
        except (ValueError, OSError):
            yield from _damaged_rows(place, reader, header, name)
    if len(index) < len(header.index_arrays()):
        return
    raw, states, counts = index["index/key"], index["index/state"], index["index/counts"]
    if seal(header.attributes(), raw, index["index/shape"]) != header.seal:
        yield f"{place}: the seal does not match the attributes, index/key and index/shape; one of them was altered"
    try:
        keys = unpack_keys(raw)
    except UnicodeDecodeError:
        yield f"{place / 'index/key'}: a name is not UTF-8"
        return
    if len(set(keys)) != len(keys):
        yield f"{place / 'index/key'}: names are not unique"
    done = states == DONE
    wrong = {
        "index/state": (states >= len(STATE_NAMES), "has an unknown state"),
        "index/shape": (
            _any((index["index/shape"] > header.extent) | (index["index/shape"] < 0)),
            "has an impossible size",
        ),
        "index/counts": (
            _any((counts < 0) | (counts > (MAX_RECORDS, MAX_ATOMS, MAX_PAIRS))) | ((states > DONE) & _any(counts != 0)),
            "has impossible numbers of masks, atoms or pairs",
        ),
        "index/digest": (
            done & ~_any(index["index/digest"] != 0) & (header.digest != "none"),
            "is done, but has no digest",
        ),
        "index/error": (done & _any(index["index/error"] != 0), "is done, but has the reason of a quarantine"),
    }
    for name, (rows, what) in wrong.items():
        if rows.any():
            yield f"{place / name}: {_named([keys[row] for row in np.flatnonzero(rows)])} {what}"
    for row in np.flatnonzero(_any(index["index/error"] != 0)):
        try:
            index["index/error"][row].tobytes().decode()
        except UnicodeDecodeError:
            yield f"{place / 'index/error'}: the reason of {keys[row]} is not UTF-8"


def _any(rows: Any) -> Any:
    return rows.reshape(len(rows), -1).any(axis=1)


def _damaged_rows(place: Location, reader: Reader, header: Header, name: str) -> Iterator[str]:
    spec = header.arrays[name]
    per_row = header.block_size if name in ("index/shard_digest", EMBEDDING_DIGEST) else 1
    for part in range(spec.n_parts):
        first, last = part * spec.part_rows, min((part + 1) * spec.part_rows, spec.shape[0])
        try:
            reader.read(name, spec, (slice(first, last),))
        except (ValueError, OSError):
            rows = range(first * per_row, min(last * per_row, header.n_images))
            names = _keys_of(reader, header, rows)
            yield f"{place / name / spec.part_path(part)}: damaged or missing ({names})"


def _keys_of(reader: Reader, header: Header, rows: range) -> str:
    """The images of some rows by name, or by number when the names are damaged."""
    try:
        raw = reader.read("index/key", header.arrays["index/key"], (slice(rows.start, rows.stop),))
        names = unpack_keys(raw)
    except (ValueError, OSError):
        return f"images {rows.start} to {rows.stop - 1}"
    return f"images {names[0]} to {names[-1]}"


def _shard_problems(store: MaskStore, block: int) -> Iterator[str]:
    rows = store.header.block_range(block)
    whole = f"images {store.keys[rows[0]]} to {store.keys[rows[-1]]}"
    begun = (store.states[rows.start : rows.stop] != PENDING).any()
    for column, (name, spec) in enumerate(store.header.data_arrays().items()):
        shard = store.path / name / spec.part_path(block)
        expected = store.shard_digests[block, column].tobytes()
        if not store.reader.has_shards:
            hit = _unreadable(store, name, rows)
            if hit:
                yield f"{store.path / name}: damaged ({hit})"
            continue
        if expected == NO_SHARD:
            if (
                begun
                and store.reader.lists
                and store.reader.digests([(name, block)], store.header.arrays)[0] is not None
            ):
                yield f"{shard}: not in the index ({whole})"
            continue
        try:
            digests = store.reader.check((name, block), spec)
        except ValueError:  # an entry of a zip
            digests = b"", b"damaged"
        if digests is None:
            yield f"{shard}: missing ({whole})"
            continue
        stated, found = digests
        if found == expected == stated:
            continue
        twins = [b for b, known in enumerate(store.shard_digests) if known[column].tobytes() == stated]
        if found == stated and twins:
            other = store.header.block_range(twins[0])
            yield f"{shard}: is the shard of images {store.keys[other[0]]} to {store.keys[other[-1]]} ({whole})"
        else:
            yield f"{shard}: does not match its checksum ({_unreadable(store, name, rows) or whole})"


def _unreadable(store: MaskStore, name: str, rows: range) -> str:
    """The images of a block of which a chunk cannot be read, by name."""
    spec, hit = store.header.arrays[name], []
    for position in rows:
        if store.states[position] != DONE:
            continue
        height, width = (int(side) for side in store.shapes[position])
        n_masks, _, n_pairs = (int(count) for count in store.counts[position])
        used = {"pairs": (slice(0, n_pairs),), "records": (slice(0, n_masks),)}
        plane = () if name.startswith("embeddings/") else (slice(0, height), slice(0, width))
        try:
            store.reader.read(name, spec, (position, *used.get(name, plane)))
        except Unreachable:
            raise
        except (ValueError, OSError):
            hit.append(store.keys[position])
    return _named(hit)


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def _image_problems(store: MaskStore, position: int, key: str) -> Iterator[str]:
    store.error(key)
    if store.states[position] != DONE:
        return
    n_masks, n_atoms, n_pairs = (int(n) for n in store.counts[position])
    found = store.atoms(key)
    pairs = found.pairs.astype(np.int64)
    order = pairs[:, 0] * 65536 + pairs[:, 1]
    if (np.diff(order) <= 0).any():
        yield "pairs are not sorted or repeat"
    used = np.unique(found.atoms)
    if not np.array_equal(used[used > 0], np.arange(1, n_atoms + 1)) or not np.array_equal(
        np.unique(pairs[:, 0]), np.arange(1, n_atoms + 1)
    ):
        yield "atoms of the label plane, of the table and of the index differ"
        return
    if not np.array_equal(from_window(found.atoms, found.pairs, found.mask_ids).atoms, found.atoms):
        yield "atoms are not numbered by their first pixel"
    words = np.random.default_rng(0).integers(1, 2**64, max(1, n_masks), np.uint64, endpoint=False)
    sets = np.zeros(n_atoms + 1, np.uint64)
    np.bitwise_xor.at(sets, pairs[:, 0], words[pairs[:, 1]])
    if len(np.unique(sets)) != len(sets):
        yield "two atoms have the same masks"
    records = store.records(key)
    if not np.array_equal(records["area"], found.mask_areas()):
        yield "areas of the records differ from the masks"
    if not np.array_equal(found.mask_boxes(), np.stack([records[f"bbox_{c}"] for c in "xywh"], axis=1)):
        yield "boxes of the records differ from the masks"
    if beyond := _rows_beyond(store, position, n_masks, n_pairs):
        yield f"{beyond} go on after the last one that is counted"
    checkable = store.header.images and store.header.digest == "pixels"
    if checkable and pixel_digest(store.image("blurred", key)) != store.digest(key):
        yield "the stored blurred image does not match its digest"


def _rows_beyond(store: MaskStore, position: int, n_masks: int, n_pairs: int) -> str:
    """The table with values in the rest of its last chunk."""
    for name, count in (("pairs", n_pairs), ("records", n_masks)):
        spec = store.header.arrays[name]
        stop = min(-(-count // spec.chunks[1]) * spec.chunks[1], spec.shape[1])
        if store.reader.read(name, spec, (position, slice(count, max(count, stop)))).any():
            return name
    return ""
