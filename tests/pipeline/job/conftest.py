"""Five small pairs, and the store that comes of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_jobs import SHAPES, run, save_network

from samdeblur.pipeline.job import coordinator


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pairs):
    """Five pairs: three blocks. For reading only."""
    return write_pairs(tmp_path_factory.mktemp("data") / "toy", SHAPES)


@pytest.fixture
def own_folder(folder, tmp_path):
    """A copy of the pairs to damage."""
    return Path(shutil.copytree(folder, tmp_path / "toy"))


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory, store_case):
    """The store of the pairs, made in one go. For reading only."""
    path = tmp_path_factory.mktemp("undisturbed") / "toy.zarr"
    run(folder, path)
    return store_case.at(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("network") / "tiny.safetensors", seed=0)


@pytest.fixture
def commit_each_block(monkeypatch):
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", -1)
