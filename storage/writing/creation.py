"""Making a new store: built in a folder of its own, then there in one rename, whoever else makes one at that moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from samdeblur.storage.files import fsync_path, naming, write_durably
from samdeblur.storage.format.durable import DurableStore
from samdeblur.storage.format.layout import Header, create_array, pack_keys, seal, writing_all_chunks
from samdeblur.storage.listing import is_empty
from samdeblur.storage.writing.lease import is_gone

CREATING = ".creating-"  # in the names of folders in which stores are built
TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def create_store(path: Path, header: Header, keys: Sequence[str], shapes: NDArray[np.int32]) -> None:
    """Make a store with every image pending. It appears whole or not at all.

    Args:
        path: where; see `is_vacant`. A folder may be the top of a disk, and is filled.
        header: attributes and sizes.
        keys: I names.
        shapes: (I, 2) int32 height, width; 0 0 where unknown.

    Raises:
        FileExistsError: something is there, such as the store that another job has just made.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path, header)
    if not is_vacant(path):
        raise FileExistsError(errno.EEXIST, "something is there already", str(path))
    mark = f"{CREATING}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    building = path / mark if path.is_dir() else path.with_name(f"{path.name}{mark}")
    with naming(path):
        _build(path, building, header, keys, shapes)
    fsync_path(path.parent)


def _build(path: Path, building: Path, header: Header, keys: Sequence[str], shapes: NDArray[np.int32]) -> None:
    try:
        packed = pack_keys(keys, header.key_bytes)
        group = zarr.create_group(DurableStore(building), zarr_format=3)
        for name, spec in header.data_arrays().items():
            create_array(group, name, spec)
        known: dict[str, Any] = {"index/key": packed, "index/shape": shapes}
        for name, spec in header.index_arrays().items():
            writing_all_chunks(create_array(group, name, spec))[...] = known.get(name, 0)
        root = header.root(seal(header.attributes(), packed, shapes))
        write_durably(building / "zarr.json", json.dumps(root, indent=2).encode())
        try:
            if building.parent == path:
                for name in sorted(os.listdir(building)):  # zarr.json last: it makes a store of the folder
                    os.rename(building / name, path / name)
                fsync_path(path)
            else:
                os.rename(building, path)
        except OSError as error:
            if error.errno in TAKEN:
                raise FileExistsError(errno.EEXIST, "something is there already", str(path)) from error
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def is_vacant(path: Path) -> bool:
    """Whether a store can be made at a path: nothing is there, or a folder with nothing in it that counts."""
    if not path.is_dir():
        return not path.exists()
    return is_empty(path) or (any(path.glob(f"{CREATING}*")) and not (path / "zarr.json").exists())


def _tidy(path: Path, header: Header) -> None:
    """Remove what jobs of this host that were killed in here left behind."""
    mark = f"{CREATING}{socket.gethostname()}-"
    for left in [*path.parent.glob(f"{path.name}{CREATING}*"), *path.glob(f"{CREATING}*")]:
        pid = left.name.removeprefix(path.name).removeprefix(mark).split("-")[0]
        if pid.isdigit() and is_gone(int(pid)):
            half = {path / name.split("/")[0] for name in header.arrays} if left.parent == path else ()
            for folder in (*half, left):
                shutil.rmtree(folder, ignore_errors=True)
