"""Paths that are not UTF-8: every command takes them."""

from __future__ import annotations

import os
import shutil

import pytest

ODD = os.fsdecode(b"\xe9t\xe9")


@pytest.fixture
def odd(tmp_path, store):
    """A folder, and a store in it, whose names are not UTF-8."""
    folder = tmp_path / ODD
    folder.mkdir()
    shutil.copytree(store, folder / f"{ODD}.zarr")
    return folder


def test_a_store_is_checked_shared_and_looked_at(samdeblur, odd):
    store = odd / f"{ODD}.zarr"
    for arguments in (
        ["status", store],
        ["info", store],
        ["verify", store],
        ["export", store, odd / f"{ODD}.zip"],
        ["verify", odd / f"{ODD}.zip"],
        ["export", store, odd / f"{ODD}.h5"],
        ["verify", odd / f"{ODD}.h5"],
        ["export", store, odd / f"{ODD}.json", "--format", "coco-instances"],
        ["view", store, odd / f"{ODD}.html"],
        ["subset", store, odd / f"{ODD}-part.zarr", "--keys", "000"],
    ):
        ended = samdeblur("prep", *arguments)
        assert ended.code == 0, (arguments, ended.err)


def test_a_network_is_trained_evaluated_and_used(samdeblur, odd, pairs, tiny):
    assert samdeblur("train", odd / f"{ODD}.zarr", "--out", odd / "run", "--method", "none", *tiny).code == 0
    assert samdeblur("eval", "run", odd / "run", odd / f"{ODD}.zarr", "--out", odd / "results").code == 0
    assert samdeblur("eval", "table", odd / "results").code == 0
    ended = samdeblur("eval", "restore", odd / "run", pairs / "blur", "--out", odd / f"{ODD}-out")
    assert ended.code == 0, ended.err
