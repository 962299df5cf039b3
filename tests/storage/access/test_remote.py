"""Stores behind HTTP and S3 servers on this machine."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import servers

from samdeblur.storage import MaskStore, StoreError, Unreachable, open_store
from samdeblur.storage.access import files
from samdeblur.storage.access.zips import TAIL
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.sharing.verify import verify_store


@pytest.fixture(scope="module")
def folder(whole_store, tmp_path_factory):
    """A folder to serve: whole.zarr and whole.zarr.zip, with images."""
    path = tmp_path_factory.mktemp("served")
    (path / "whole.zarr").symlink_to(whole_store.path)
    export_zip(whole_store.path, path / "whole.zarr.zip", images=True)
    export_zip(whole_store.path, path / "masks.zarr.zip")
    return path


@pytest.fixture(scope="module")
def s3(folder):
    """A bucket that holds that folder."""
    with servers.bucket_server(folder) as served:
        yield served


@pytest.fixture(params=["http", "s3"])
def served(request, folder):
    if request.param == "s3":
        yield request.getfixturevalue("s3")
        return
    with servers.folder_server(folder) as found:
        yield found


@pytest.mark.parametrize("name", ["whole.zarr", "whole.zarr.zip"])
def test_a_store_behind_a_server_is_the_store_on_the_disk(served, name, whole_store):
    mine, theirs = open_store(f"{served.url}/{name}"), open_store(whole_store.path)
    assert mine.keys == theirs.keys
    assert mine.header == theirs.header
    for key in theirs.ready_keys:
        assert mine.atoms(key) == theirs.atoms(key)
        assert np.array_equal(mine.records(key)["area"], theirs.records(key)["area"])
        assert np.array_equal(mine.image("sharp", key), theirs.image("sharp", key))
    assert list(verify_store(f"{served.url}/{name}")) == []


def test_a_zip_smaller_than_what_is_read_of_its_end(served, folder, whole_store):
    assert (folder / "masks.zarr.zip").stat().st_size < TAIL
    store = open_store(f"{served.url}/masks.zarr.zip")
    assert store.atoms("nuit/été_夜") == open_store(whole_store.path).atoms("nuit/été_夜")


@pytest.mark.parametrize("name", ["whole.zarr", "whole.zarr.zip"])
def test_spawned_processes_open_a_connection_of_their_own(served, name, whole_store):
    store, key = open_store(f"{served.url}/{name}"), "nuit/été_夜"
    expected = store.atoms(key)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(MaskStore.atoms, store, key).result() == expected


@pytest.mark.parametrize("name", ["gone.zarr", "gone.zarr.zip"])
def test_a_missing_store_is_not_found(served, name):
    with pytest.raises(FileNotFoundError, match="no such store"):
        open_store(f"{served.url}/{name}")


@pytest.mark.parametrize("name", ["whole.zarr", "whole.zarr.zip"])
def test_a_server_without_byte_ranges_is_refused_in_one_line(folder, name, whole_store):
    with (
        servers.folder_server(folder, ranges=False) as served,
        pytest.raises(Unreachable, match="does not send parts of files"),
    ):
        open_store(f"{served.url}/{name}").atoms(whole_store.keys[0])


@pytest.mark.parametrize("name", ["whole.zarr", "whole.zarr.zip"])
def test_a_silent_server_is_given_up(name, monkeypatch):
    monkeypatch.setattr(files, "TIMEOUT", 0.2)
    with servers.silent_server() as served, pytest.raises(Unreachable, match="no answer within"):
        open_store(f"{served.url}/{name}")


def test_a_refusing_server_is_named():
    with servers.refusing_server() as served, pytest.raises(Unreachable, match=f"{served.url}.*403"):
        open_store(f"{served.url}/whole.zarr")


@pytest.mark.parametrize("address", ["ftp://host/x.zarr", "webdav://host/x.zarr", "http://host/masks.h5"])
def test_other_addresses_are_refused_in_one_line(address):
    with pytest.raises(StoreError, match=address):
        open_store(address)
