"""Training on a store behind a server: what travels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import servers

from samdeblur.storage import AtomMap, open_store
from samdeblur.storage.format.layout import DONE, Header, pixel_digest
from samdeblur.storage.sharing.export import export_zip
from samdeblur.storage.writing.commits import (
    Committer,
    ImageContent,
    ImageOutcome,
    StagedBlock,
    geometry_records,
    stage_block,
)
from samdeblur.storage.writing.creation import create_store
from samdeblur.train.loop import train

SIDE = 4096
CHUNK_BYTES = 256 * 256 * 3  # of noise, which does not compress
INDEX_BYTES = 2 * 16 * 16 * 16  # of a shard of two images


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


@pytest.fixture(params=["http", "s3"])
def served(request, large):
    with {"http": servers.folder_server, "s3": servers.bucket_server}[request.param](large) as found:
        yield found


@pytest.mark.parametrize("name", ["large.zarr", "large.zarr.zip"])
def test_of_a_shard_of_100_mb_only_the_needed_chunks_travel(served, large, name):
    local, store = open_store(large / name), open_store(f"{served.url}/{name}")
    opened = served.bytes
    assert opened < 2e5
    window = (1000, 2000, 256, 256)  # four chunks
    for key in store.keys:
        assert store.atoms(key, window) == local.atoms(key, window)
        assert np.array_equal(store.image("blurred", key, window), local.image("blurred", key, window))
    assert served.bytes - opened < 2 * 4 * CHUNK_BYTES + 3 * INDEX_BYTES + 3e4


@pytest.mark.parametrize("name", ["large.zarr", "large.zarr.zip"])
def test_an_epoch_is_trained_from_a_server(served, small, store, tmp_path, name):
    remote = open_store(f"{served.url}/{name}")
    before = served.bytes
    settings = replace(small, method="map-dropout", steps=1, crop_size=64)  # a batch of both images
    history = train(settings, remote, tmp_path / "run", store)
    assert history[-1]["step"] == 1
    # crops of 64 px lie in one to four chunks; the sharp images are empty
    assert CHUNK_BYTES < served.bytes - before < 2 * 4 * CHUNK_BYTES + 5 * INDEX_BYTES + 5e4
