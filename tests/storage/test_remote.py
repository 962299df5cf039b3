"""Stores behind HTTP and S3 servers on this machine."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import boto3
import numpy as np
import pytest
import servers
from moto.server import ThreadedMotoServer

from samdeblur.storage import AtomMap, MaskStore, StoreError, Unreachable, location, open_store
from samdeblur.storage.commits import Committer, ImageContent, ImageOutcome, StagedBlock, geometry_records, stage_block
from samdeblur.storage.layout import DONE, Header, create_store, pixel_digest
from samdeblur.storage.share import export_zip
from samdeblur.storage.verify import verify_store
from samdeblur.storage.zips import TAIL


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
    """A bucket that holds that folder, behind a server that counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        with servers.proxy_server(f"{host}:{port}") as served:
            patch.setenv("AWS_ENDPOINT_URL", served.url)
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
            client.create_bucket(Bucket="masks")
            for file in [*folder.glob("*.zip"), *(folder / "whole.zarr").rglob("*")]:
                if file.is_file():
                    client.upload_file(str(file), "masks", f"shared/{file.relative_to(folder)}")
            served.url = "s3://masks/shared"
            yield served
        moto.stop()


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
    monkeypatch.setattr(location, "TIMEOUT", 0.2)
    with servers.silent_server() as served, pytest.raises(Unreachable, match="no answer within"):
        open_store(f"{served.url}/{name}")


def test_a_refusing_server_is_named():
    with servers.refusing_server() as served, pytest.raises(Unreachable, match=f"{served.url}.*403"):
        open_store(f"{served.url}/whole.zarr")


@pytest.mark.parametrize("address", ["ftp://host/x.zarr", "gs://bucket/x.zarr", "http://host/masks.h5"])
def test_other_addresses_are_refused_in_one_line(address):
    with pytest.raises(StoreError, match=address):
        open_store(address)


SIDE = 4096


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store whose shard of blurred images has 100 MB: two images of noise, some masks."""
    path = tmp_path_factory.mktemp("large")
    header = Header("noise", "train", {}, "pixels", 2, (SIDE, SIDE), 16, 2, images=True)
    keys, shapes = ["a", "b"], np.full((2, 2), SIDE, np.int32)
    create_store(path / "large.zarr", header, keys, shapes)
    rng = np.random.default_rng(0)
    contents, outcomes = [], []
    for _ in keys:
        masks = np.zeros((3, SIDE, SIDE), bool)
        for mask, (y, x) in zip(masks, rng.integers(0, SIDE // 2, (3, 2)), strict=True):
            mask[y : y + 1500, x : x + 1500] = True
        atoms = AtomMap.from_masks(masks)
        blurred = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        contents.append(ImageContent(atoms, geometry_records(atoms), blurred, np.zeros_like(blurred)))
        counts = atoms.n_masks, atoms.n_atoms, len(atoms.pairs)
        outcomes.append(ImageOutcome(DONE, pixel_digest(blurred), counts))
    committer = Committer(path / "large.zarr")
    staging = committer.staging(0)
    digests = stage_block(path / "large.zarr", header, staging, 0, contents)
    committer.commit([StagedBlock(0, str(staging), tuple(outcomes), digests)])
    committer.close()
    assert (path / "large.zarr/images/blurred/c/0/0/0/0").stat().st_size > 100e6
    export_zip(path / "large.zarr", path / "large.zarr.zip", images=True)
    return path


@pytest.mark.parametrize("name", ["large.zarr", "large.zarr.zip"])
def test_of_a_shard_of_100_mb_only_the_needed_chunks_travel(large, name):
    local = open_store(large / name)
    with servers.folder_server(large) as served:
        store = open_store(f"{served.url}/{name}")
        opened = served.bytes
        assert opened < 2e5
        window = (1000, 2000, 256, 256)  # four chunks
        for key in store.keys:
            assert store.atoms(key, window) == local.atoms(key, window)
            assert np.array_equal(store.image("blurred", key, window), local.image("blurred", key, window))
        # eight chunks of noise, the indices of three shards, little else
        assert served.bytes - opened < 8 * 256 * 256 * 3 + 3 * 2 * 256 * 16 + 3e4
