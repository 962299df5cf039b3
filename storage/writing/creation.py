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

from samdeblur.storage.files import DurableStore, fsync_path, write_durably
from samdeblur.storage.format.layout import Header, create_array, pack_keys, seal, write_all_chunks
from samdeblur.storage.writing.lease import is_gone

TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def create_store(path: Path, header: Header, keys: Sequence[str], shapes: NDArray[np.int32]) -> None:
    """Make a store with every image pending. It appears whole or not at all.

    Args:
        path: where; nothing, or an empty folder.
        header: attributes and sizes.
        keys: I names.
        shapes: (I, 2) int32 height, width; 0 0 where unknown.

    Raises:
        FileExistsError: something is there, such as the store that another job has just made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path)
    building = path.with_name(f"{path.name}.creating-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        packed = pack_keys(keys, header.key_bytes)
        group = zarr.create_group(DurableStore(building))
        for name, spec in header.data_arrays().items():
            create_array(group, name, spec)
        known: dict[str, Any] = {"index/key": packed, "index/shape": shapes}
        with write_all_chunks():
            for name, spec in header.index_arrays().items():
                create_array(group, name, spec)[...] = known.get(name, 0)
        root = header.root(seal(header.attributes(), packed, shapes))
        write_durably(building / "zarr.json", json.dumps(root, indent=2).encode())
        try:
            os.rename(building, path)
        except OSError as error:
            if error.errno in TAKEN:
                raise FileExistsError(errno.EEXIST, "something is there already", str(path)) from error
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    fsync_path(path.parent)


def _tidy(path: Path) -> None:
    """Remove what jobs of this host that were killed in here left behind."""
    prefix = f"{path.name}.creating-{socket.gethostname()}-"
    for left in path.parent.glob("*.creating-*"):
        pid = left.name.removeprefix(prefix).split("-")[0]
        if left.name.startswith(prefix) and pid.isdigit() and is_gone(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
