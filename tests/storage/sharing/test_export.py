from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import zarr

from samdeblur.storage import ImageNotReady, StoreDamaged, StoreError, open_store
from samdeblur.storage.sharing import export, hdf5
from samdeblur.storage.sharing.export import export_hdf5, export_zip
from samdeblur.storage.sharing.verify import verify_store

EXPORTS = {"zip": export_zip, "h5": export_hdf5}


@pytest.fixture(scope="session", params=[(kind, images) for kind in EXPORTS for images in (False, True)], ids=str)
def share(request, whole_store, tmp_path_factory):
    kind, images = request.param
    path = tmp_path_factory.mktemp("share") / f"toy.{kind}"
    EXPORTS[kind](whole_store.path, path, images=images, licence="CC BY 4.0")
    return path, images


def test_a_share_opens_as_the_store_it_was_made_of(share, whole_store):
    path, images = share
    mine, theirs = open_store(path), open_store(whole_store.path)
    assert mine.keys == theirs.keys
    assert mine.ready_keys == theirs.ready_keys
    assert mine.header.recipe == theirs.header.recipe
    for key in theirs.ready_keys:
        assert mine.atoms(key) == theirs.atoms(key)
        assert mine.shape(key) == theirs.shape(key)
        assert mine.digest(key) == theirs.digest(key)
        height, width = mine.shape(key)
        window = (height // 3, width // 4, height - height // 3, max(1, width // 2))
        assert mine.atoms(key, window) == theirs.atoms(key, window)
        for name, column in theirs.records(key).items():
            assert np.array_equal(mine.records(key)[name], column, equal_nan=True)
        if images:
            for name in ("blurred", "sharp"):
                assert np.array_equal(mine.image(name, key, window), theirs.image(name, key, window))
        else:
            with pytest.raises(StoreError, match="without images"):
                mine.image("blurred", key)
    for key in set(theirs.keys) - set(theirs.ready_keys):
        with pytest.raises(ImageNotReady, match="quarantined"):
            mine.atoms(key)


def test_a_share_is_sound_and_says_what_it_is(share):
    path, images = share
    assert list(verify_store(path)) == []
    name = path.with_name(path.name + ".sha256").read_text()
    assert name == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
    if path.suffix == ".zip":
        note = zipfile.ZipFile(path).read("README.md").decode()
    else:
        note = h5py.File(path).attrs["readme"]
    for word in (
        "CC BY 4.0",
        path.name,
        open_store(path).header.fingerprint,
        "masks only" if not images else "images included",
    ):
        assert word in note


@pytest.mark.parametrize("kind", EXPORTS)
def test_the_same_store_gives_the_same_bytes(kind, whole_store, tmp_path):
    for folder in ("a", "b"):
        EXPORTS[kind](whole_store.path, tmp_path / folder / f"toy.{kind}")
    assert (tmp_path / "a" / f"toy.{kind}").read_bytes() == (tmp_path / "b" / f"toy.{kind}").read_bytes()


def test_zip_entries_are_stored_and_zarr_reads_them(whole_store, tmp_path):
    export_zip(whole_store.path, tmp_path / "toy.zarr.zip")
    infos = zipfile.ZipFile(tmp_path / "toy.zarr.zip").infolist()
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert not any(info.filename.startswith("images/") for info in infos)
    group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "toy.zarr.zip"), mode="r")
    position = whole_store.keys.index("scene/small")
    expected = open_store(whole_store.path).atoms("scene/small")
    assert np.array_equal(group["atoms"][position, :20, :30], expected.atoms)


def test_plain_h5py_reads_the_masks(whole_store, tmp_path):
    export_hdf5(whole_store.path, tmp_path / "toy.h5")
    position = whole_store.keys.index("scene/small")
    expected = open_store(whole_store.path).atoms("scene/small")
    with h5py.File(tmp_path / "toy.h5") as file:
        assert json.loads(file.attrs["attributes"])["format"] == 1
        assert np.array_equal(file["atoms"][position, :20, :30], expected.atoms)
        assert np.array_equal(file["pairs"][position, : len(expected.pairs)], expected.pairs)
        assert file["atoms"].compression == "gzip"


def test_an_unfinished_store_is_not_shared(finished_store, tmp_path):
    for kind, write in EXPORTS.items():
        with pytest.raises(StoreError, match="pending"):
            write(finished_store.path, tmp_path / f"toy.{kind}")
        assert list(tmp_path.iterdir()) == []


def test_a_share_is_not_exported_again(share, tmp_path):
    with pytest.raises(StoreError, match="not a folder"):
        export_zip(share[0], tmp_path / "again.zip")


@pytest.mark.parametrize("kind", EXPORTS)
def test_flipped_bytes_never_change_what_is_read(kind, whole_store, tmp_path):
    path = tmp_path / f"toy.{kind}"
    EXPORTS[kind](whole_store.path, path)
    content, sound = path.read_bytes(), open_store(path)
    keys = sound.ready_keys[:2]
    expected = {key: (sound.atoms(key), sound.records(key)["area"]) for key in keys}
    damages = 0
    written = np.flatnonzero(np.frombuffer(content, np.uint8))  # HDF5 leaves more room than it uses
    for position in written[np.linspace(0, len(written) - 1, 60).astype(int)]:
        damaged = tmp_path / f"{position}.{kind}"  # a new file: the HDF5 library remembers one that is open
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :])
        try:
            store = open_store(damaged)
            for key in keys:
                found = store.atoms(key), store.records(key)["area"]
                assert found[0] == expected[key][0], position
                assert np.array_equal(found[1], expected[key][1], equal_nan=True), position
        except (StoreError, StoreDamaged, ImageNotReady):
            damages += 1
    assert damages > 10


def test_compressed_and_repeated_entries_are_refused(whole_store, tmp_path):
    export_zip(whole_store.path, tmp_path / "toy.zip")
    with zipfile.ZipFile(tmp_path / "toy.zip") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match="compressed"):
        open_store(tmp_path / "packed.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("zarr.json", b"{}")
    with pytest.raises(StoreError, match="one name"):
        open_store(tmp_path / "twice.zip")


FULL = """
import resource, sys
from pathlib import Path
from samdeblur.storage.sharing import export, hdf5
from samdeblur.storage.sharing.export import export_hdf5, export_zip

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    (export_zip if sys.argv[2].endswith(".zip") else export_hdf5)(Path(sys.argv[1]), Path(sys.argv[2]), images=True)
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize("room", [0, 2_000, 8_000, 20_000])
@pytest.mark.parametrize("suffix", [".h5", ".zip"])
def test_a_disk_that_does_not_take_a_share_is_an_error_with_its_name_and_nothing_is_left(
    whole_store, tmp_path, suffix, room
):
    target = tmp_path / f"share{suffix}"
    whole = tmp_path / "whole" / target.name
    (export_zip if suffix == ".zip" else export_hdf5)(whole_store.path, whole, images=True)
    assert whole.stat().st_size > 20_000
    command = [sys.executable, "-c", FULL, whole_store.path, target, room]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(errno.EFBIG), str(target)]
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_library_that_ends_its_process_ends_the_export_alone(whole_store, tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "START", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(StoreError, match="signal 11"):
        export_hdf5(whole_store.path, tmp_path / "share.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_share_whose_checksum_could_not_be_written_is_not_there(whole_store, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_durably", full)
        with pytest.raises(OSError, match="No space left"):
            export_zip(whole_store.path, tmp_path / "share.zip")
    assert list(tmp_path.iterdir()) == []
    export_zip(whole_store.path, tmp_path / "share.zip")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_share_says_of_itself_holds_no_markup_of_others(whole_store, tmp_path):
    export_zip(whole_store.path, tmp_path / "share.zip", licence='CC <script src="x"></script>\n\n# Mine')
    with zipfile.ZipFile(tmp_path / "share.zip") as archive:
        text = archive.read("README.md").decode()
    assert "<script" not in text
    assert "\n# Mine" not in text
    assert "Licence: CC &lt;script" in text
