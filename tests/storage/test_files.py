"""Errors of a write name what someone asked for."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from samdeblur.storage.files import naming


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
