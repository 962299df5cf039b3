"""Any path: resolved where it enters, refused before the work, called what it is."""

from __future__ import annotations

import fcntl
import os
import shutil

import pytest

from samdeblur.pipeline import status
from samdeblur.storage import open_store
from samdeblur.storage.access import places


@pytest.mark.parametrize(
    "where", ["../prepared.zarr", "./../prepared.zarr", "..//prepared.zarr/", "../inside/../prepared.zarr"]
)
def test_a_store_is_found_by_any_way_to_write_its_path(samdeblur, store, tmp_path, monkeypatch, where):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for command in ("info", "status", "verify"):
        assert samdeblur("prep", command, where).code == 0
    assert samdeblur("prep", "export", where, "../share.zip").code == 0
    assert samdeblur("prep", "info", "./../share.zip").code == 0
    assert samdeblur("prep", "info", f"file://{store}").code == 0


def test_the_folder_one_is_in_is_a_store_like_any_other(samdeblur, prep_run, pairs, store, monkeypatch):
    monkeypatch.chdir(store)
    for arguments in (("status", "."), ("verify", ".")):
        assert samdeblur("prep", *arguments).code == 0
    assert prep_run(pairs, ".").code == 0
    assert sorted(path.name for path in store.iterdir()) == [
        "atoms",
        "images",
        "index",
        "pairs",
        "records",
        "zarr.json",
    ]


def test_an_empty_folder_is_used_and_one_that_is_not_is_called_what_it_is(samdeblur, prep_run, pairs, store, tmp_path):
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    assert prep_run(pairs, tmp_path / "disk").code == 0
    assert status(tmp_path / "disk").done == 5
    assert samdeblur("prep", "verify", tmp_path / "disk").code == 0
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/list.txt").write_text("")
    for path, words in ((pairs, "a folder of images"), (tmp_path / "notes", "a folder that holds list.txt")):
        for refused in (prep_run(pairs, path), samdeblur("prep", "info", path)):
            assert (refused.code, words in refused.error) == (2, True)
    refused = prep_run(store, tmp_path / "x.zarr")
    assert (refused.code, "that is a mask store" in refused.error) == (2, True)
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("address", ["http://host/x", "s3://bucket/x", "ftp://host/x"])
def test_what_is_written_or_read_on_a_disk_is_no_address(
    samdeblur, prep_run, pairs, store, tmp_path, monkeypatch, address
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for refused in (
        prep_run(pairs, address),
        prep_run(address, "x.zarr"),
        samdeblur("prep", "export", store, f"{address}.zip"),
        samdeblur("prep", "export", address, "x.zip"),
        samdeblur("prep", "subset", store, address, "--keys", "*"),
        samdeblur("prep", "view", store, f"{address}.html"),
        samdeblur("prep", "import", address, "x.zarr", "--split", "test"),
        samdeblur("prep", "verify", store, "--deep", address),
        samdeblur("train", store, "--out", address),
        samdeblur("eval", "table", address),
    ):
        assert (refused.code, "address" in refused.error, address in refused.error) == (2, True, True)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("target", ["/proc/x", "file/x", "circle/x", "l" * 300])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    samdeblur, prep_run, pairs, store, tmp_path, monkeypatch, target
):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("round")
    (tmp_path / "round").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    for refused in (
        prep_run(pairs, target),
        samdeblur("prep", "export", store, f"{target}.zip"),
        samdeblur("prep", "view", store, f"{target}.html"),
        samdeblur("prep", "subset", store, target, "--keys", "*"),
        samdeblur("train", store, "--out", target),
    ):
        assert (refused.code, target in refused.error, ".partial" in refused.error) == (2, True, False)


def test_home_and_links_are_followed(samdeblur, store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(store)
    assert samdeblur("prep", "info", "~/link").code == 0
    assert samdeblur("prep", "export", "~/link", "~/share.zip").code == 0
    assert (tmp_path / "share.zip").is_file()


def test_a_permission_and_a_lock_are_called_that_and_not_damage(samdeblur, store, tmp_path, monkeypatch):
    assert samdeblur("prep", "export", store, tmp_path / "s.h5").code == 0
    with open(tmp_path / "s.h5", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does in another process
        locked = samdeblur("prep", "info", tmp_path / "s.h5")
        assert (locked.code, "locked by another program" in locked.error) == (1, True)
    assert samdeblur("prep", "info", tmp_path / "s.h5").code == 0
    shutil.copytree(store, tmp_path / "closed")
    (tmp_path / "closed/zarr.json").unlink()
    monkeypatch.setattr(places.os, "access", lambda path, mode: False)  # root may read everything
    denied = samdeblur("prep", "info", tmp_path / "closed")
    assert (denied.code, "Permission denied; it exists, but you may not read it" in denied.error) == (1, True)


def test_a_store_that_was_opened_by_a_relative_path_is_read_from_another_folder(store, tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(store.parent)
    opened = open_store(store.name)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(opened)).keys == opened.keys


@pytest.mark.parametrize("start", ["file://", "file://localhost", "FILE://", "file:"])
def test_a_file_address_is_a_path_with_what_it_quotes(samdeblur, store, tmp_path, start):
    (tmp_path / "a b%41").mkdir()
    (tmp_path / "a b%41/link").symlink_to(store)
    assert samdeblur("prep", "info", f"{start}{tmp_path}/a%20b%2541/link").code == 0
    assert samdeblur("prep", "info", f"{start}{tmp_path}/a b%41/link").code == 0


def test_an_empty_path_and_a_device_are_called_that(samdeblur):
    for command, said in ((("info", ""), "an empty path"), (("status", "/dev/null"), "a pipe, a device")):
        refused = samdeblur("prep", *command)
        assert (refused.code, said in refused.error) == (2, True)


def test_nothing_is_written_into_a_store_but_its_own_images(samdeblur, store, pairs, prep_run):
    before = sorted(store.rglob("*"))
    for refused in (
        samdeblur("prep", "export", store, store / "x.zip"),
        samdeblur("prep", "view", store, store / "x.html"),
        samdeblur("prep", "subset", store, store / "part/x.zarr", "--keys", "*"),
        samdeblur("train", store, "--out", store / "run"),
        prep_run(pairs, store / "x.zarr"),
    ):
        assert (refused.code, f"inside the mask store {store}" in refused.error) == (2, True)
    assert sorted(store.rglob("*")) == before
