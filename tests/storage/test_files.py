"""Errors of a write name what someone asked for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from samdeblur.storage.files import naming, write_durably


@pytest.mark.parametrize(
    ("name", "named"),
    [
        (None, "/data/out.zarr"),
        ("/data/out.zarr.partial", "/data/out.zarr"),
        ("/data/out.zarr.creating-host-7/zarr.json", "/data/out.zarr"),
        ("/data/out.zarr/zarr.json", "/data/out.zarr/zarr.json"),
        ("/data/source.png", "/data/source.png"),
    ],
)
def test_what_stands_in_for_a_path_is_called_as_it_is_asked_for(name, named):
    with pytest.raises(OSError, match="No space") as caught, naming(Path("/data/out.zarr")):
        raise OSError(errno.ENOSPC, "No space left on device", name)
    assert caught.value.filename == named


def test_a_write_that_fails_leaves_the_old_file_and_no_half(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "run.json"
    write_durably(file, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_durably(file, b"new")
    assert (caught.value.filename, file.read_bytes(), os.listdir(tmp_path)) == (str(file), b"old", ["run.json"])
