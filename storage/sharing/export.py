"""Sharing a store as one file: a zip that opens as it is, or an HDF5 file for those who have no Zarr."""

from __future__ import annotations

import html
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import MemoryStore

from samdeblur.storage.files import PARTIAL, fsync_path, naming, sha256_file, write_durably
from samdeblur.storage.format.layout import (
    DONE,
    EMBEDDING_DIGEST,
    PENDING,
    Header,
    StoreError,
    create_array,
    writing_all_chunks,
)
from samdeblur.storage.listing import files_in
from samdeblur.storage.names import in_unicode
from samdeblur.storage.plurals import counted
from samdeblur.storage.sharing.hdf5 import SHARD_DIGEST, Codec, check_codec, write_apart
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.store import MaskStore, StoreDamaged, open_store

LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the time of every entry, so that equal stores give equal bytes


def export_zip(store: Path, target: Path, images: bool = False, licence: str = "not stated") -> None:
    """Write a store as a zip of stored entries, and its SHA-256 to `TARGET.sha256`. Equal stores give equal bytes.

    Args:
        store: a folder, every image of it done or quarantined.
        target: is replaced when it is there.
        images: whether the images go along. Embeddings never do.
        licence: of the masks, for the note inside.

    Raises:
        StoreError: not a folder, images pending, or no images to go along.
        StoreDamaged: anything that verification finds.
    """
    source, header = _source(store, images)
    digests: dict[str, bytes] = _digests(source, header)
    skipped = (SHARD_DIGEST, EMBEDDING_DIGEST, "embeddings", *(() if images else ("images",)))
    names = sorted(name for name, _ in files_in(store))
    kept = [name for name in names if not any(name.startswith(f"{part}/") for part in skipped)]
    root = json.loads((store / "zarr.json").read_bytes())
    root["consolidated_metadata"]["metadata"] = header.metadata()
    small: dict[str, bytes | Path] = {
        "README.md": note(source, header, in_unicode(target.name), licence).encode(),
        **digests,
    }
    small |= {name: store / name for name in kept if name.startswith("index/") or name.endswith("zarr.json")}
    small["zarr.json"] = json.dumps(root, indent=2).encode()
    with _whole(target) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in kept:
            if name not in small:
                _add(archive, name, store / name)
        for name in sorted(small):  # beside the directory at the end: one request gives a reader both
            _add(archive, name, small[name])


def export_hdf5(
    store: Path, target: Path, images: bool = False, licence: str = "not stated", codec: Codec = "gzip"
) -> None:
    """Write a store as an HDF5 file with the same arrays, and its SHA-256 to `TARGET.sha256`. Chunks carry checksums.

    Args:
        codec: "gzip" is read by every HDF5 library, "zstd" by those with the plugin.

    Otherwise as `export_zip`.

    Raises:
        StoreError: as `export_zip`, or zstd without hdf5plugin.
        OSError: the disk does not take it.
    """
    source, header = _source(store, images)
    check_codec(codec)
    with _whole(target) as partial:
        write_apart(partial, store, images, codec, note(source, header, in_unicode(target.name), licence), target)


def _source(store: Path, images: bool) -> tuple[MaskStore, Header]:
    """The store opened, and the header of what is to be exported of it."""
    source = open_store(store)
    if source.path.remote or not source.path.path.is_dir():
        raise StoreError(f"{store}: not a folder; export from the store it was made of, or copy the file")
    pending = int((source.states == PENDING).sum())
    if pending:
        raise StoreError(
            f"{store}: {pending} of {counted(len(source), 'image')} pending; finish it with samdeblur-prep run"
        )
    if images:
        source.require_images()
    for problem in verify_store(store):
        raise StoreDamaged(f"{problem}; a damaged store is not shared, see samdeblur-prep verify")
    return source, replace(source.header, images=images, embeddings=())


def _digests(source: MaskStore, header: Header) -> dict[str, bytes]:
    """Files of the index of shard digests, which has a column for each array that goes along."""
    memory: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3)
    array = writing_all_chunks(create_array(group, SHARD_DIGEST, header.index_arrays()[SHARD_DIGEST]))
    array[...] = source.shard_digests[:, : len(header.data_arrays())]
    return {name: value.to_bytes() for name, value in sorted(memory.items()) if name.startswith(f"{SHARD_DIGEST}/")}


def note(source: MaskStore, header: Header, name: str, licence: str) -> str:
    """What a share says of itself."""
    done = source.states == DONE
    masks = source.counts[done, 0].mean() if done.any() else 0
    images = "blurred and sharp images included" if header.images else "masks only, without images"
    dataset, split, licence = (html.escape(" ".join(text.split()), quote=False) for text in
                               (header.dataset, header.split, licence))  # fmt: skip
    return f"""# Masks of {dataset} {split}

{int(done.sum())} of {counted(len(source), "image")}, {counted(round(masks), "mask")} per image, {images}.
Licence: {licence}.

A mask store of format 1, written by samdeblur. It opens as it is:

    from samdeblur.storage import open_store
    store = open_store({json.dumps(name)})
    store.atoms(store.ready_keys[0]).to_masks()    # (M, H, W) bool
    store.records(store.ready_keys[0])             # columns, one value per mask

Recipe {header.fingerprint}:

    {json.dumps(dict(header.recipe), indent=2, sort_keys=True).replace(chr(10), chr(10) + "    ")}
"""


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes the target when all is written, with its SHA-256 beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    try:
        with naming(target):
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        checksum = f"{sha256_file(partial).hex()}  {target.name}\n".encode(errors="surrogateescape")
        write_durably(target.with_name(target.name + ".sha256"), checksum)  # first: what is there has one
        os.replace(partial, target)
        fsync_path(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    info = zipfile.ZipInfo(name, LONG_AGO)
    info.external_attr = 0o644 << 16
    info.create_system = 3  # or the bytes depend on the system they are written on
    if isinstance(content, bytes):
        archive.writestr(info, content, zipfile.ZIP_STORED)
        return
    info.file_size = content.stat().st_size
    with open(content, "rb") as file, archive.open(info, "w") as entry:
        shutil.copyfileobj(file, entry, 1 << 20)
