"""Writing a store into an HDF5 file, in a process of its own: on a full disk the HDF5 library may crash."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE
from typing import Any, Literal

import h5py
import numpy as np

from samdeblur.storage.format.layout import DONE, Header, StoreError
from samdeblur.storage.store import MaskStore, open_store

Codec = Literal["gzip", "zstd"]
SHARD_DIGEST = "index/shard_digest"
LEFT = 1 << 20  # bytes free on a disk that is called full
START = "from samdeblur.storage.sharing.hdf5 import main; main()"


def write_apart(partial: Path, store: Path, images: bool, codec: Codec, readme: str, target: Path) -> None:
    """Write `partial` in another process, which ends with this one.

    Args:
        target: what messages call the file.

    Raises:
        OSError: the disk does not take it. StoreError: the process ended for another reason.
    """
    order = json.dumps([str(partial), str(store), images, codec, readme])
    child = subprocess.Popen(
        [sys.executable, "-c", START], stdin=PIPE, stdout=subprocess.DEVNULL, stderr=PIPE, text=True
    )
    with child:
        try:
            with suppress(BrokenPipeError):
                print(order, file=child.stdin, flush=True)  # left open: its end is the sign that this process is gone
            said = child.stderr.read() if child.stderr else ""
        except BaseException:
            child.kill()
            raise
    ended = child.wait()
    if ended == 0:
        return
    failed = said.strip().splitlines()[-1:] or [""]
    code, _, words = failed[0].partition(" ")
    if code.isdigit() and int(code):
        raise OSError(int(code), os.strerror(int(code)), str(target))
    if shutil.disk_usage(partial.parent).free < LEFT:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    reason = words if code == "0" else f"it was ended by signal {-ended}" if ended < 0 else failed[0]
    raise StoreError(f"{target}: the HDF5 library could not write it: {reason}")


def main() -> None:
    """The process that `write_apart` starts; its last line on stderr is an error number, or 0, and words."""
    partial, store, images, codec, readme = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _write(Path(partial), open_store(store), images, codec, readme)
    except Exception as error:
        number = getattr(error, "errno", None) or _number_in(error)
        print(number, " ".join(str(error).split()), file=sys.stderr, flush=True)
        os._exit(1)  # not to have the library close what it could not write


def _number_in(error: Exception) -> int:
    """The error number that h5py has in words alone."""
    words = str(error)
    return next((n for n in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO) if os.strerror(n) in words), 0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _write(partial: Path, source: MaskStore, images: bool, codec: Codec, readme: str) -> None:
    header, filters = replace(source.header, images=images, embeddings=()), _filters(codec)
    with h5py.File(partial, "w", libver="v110", track_order=False) as file:
        file.attrs["attributes"] = json.dumps(header.attributes() | {"seal": header.seal}, sort_keys=True)
        file.attrs["block_size"] = header.block_size
        file.attrs["readme"] = readme
        for name, spec in (header.index_arrays() | header.data_arrays()).items():
            array = file.create_dataset(
                name, spec.shape, spec.dtype, chunks=spec.chunks, fletcher32=True, track_times=False, **filters
            )
            array.attrs.update(spec.attributes or {})
            if name.startswith("index/") and name != SHARD_DIGEST:  # an HDF5 file has no shards
                array[...] = source.reader.read(name, spec, ...)
        for position in np.flatnonzero(source.states == DONE):
            _copy_image(source, header, int(position), file)


def _copy_image(source: MaskStore, header: Header, position: int, file: h5py.File) -> None:
    n_masks, _, n_pairs = (int(count) for count in source.counts[position])
    height, width = (int(side) for side in source.shapes[position])
    used = {"pairs": (slice(0, n_pairs),), "records": (slice(0, n_masks),)}
    for name, spec in header.data_arrays().items():
        where = (position, *used.get(name, (slice(0, height), slice(0, width))))
        file[name][where] = source.reader.read(name, spec, where)


def check_codec(codec: Codec) -> None:
    """Raise StoreError for a codec that needs what is not installed."""
    _filters(codec)


def _filters(codec: Codec) -> Mapping[str, Any]:
    if codec == "gzip":
        return {"compression": "gzip", "compression_opts": 6, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError as error:
        raise StoreError("HDF5 with zstd needs hdf5plugin: pip install hdf5plugin") from error
    return dict(hdf5plugin.Zstd(clevel=9))
