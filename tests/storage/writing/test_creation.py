from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from samdeblur.storage import StoreError, open_store
from samdeblur.storage.sharing.verify import verify_store
from samdeblur.storage.writing import creation
from samdeblur.storage.writing.bulk import Row, fill_store
from samdeblur.storage.writing.commits import run_folder
from samdeblur.storage.writing.creation import create_store
from samdeblur.storage.writing.lease import StoreBusy


@pytest.fixture
def new(store_case, tmp_path):
    return store_case.at(tmp_path / "new.zarr")


def together(patch, jobs):
    """The `os.rename` of creation waits until all jobs are about to make it."""
    ready = threading.Barrier(jobs)

    def rename(source, target):
        ready.wait()
        os.replace(source, target)

    patch.setattr(creation, "os", type("Os", (), {"rename": staticmethod(rename), "getpid": os.getpid}))


def test_of_jobs_that_create_one_store_at_the_same_moment_one_does_and_the_others_are_told(new, monkeypatch):
    together(monkeypatch, 4)

    def job():
        try:
            new.create()
        except FileExistsError as error:
            return str(error.filename)
        return None

    with ThreadPoolExecutor(4) as pool:
        said = [future.result() for future in [pool.submit(job) for _ in range(4)]]
    assert sorted(map(bool, said)) == [False, True, True, True]
    assert {*said} - {None} == {str(new.path)}
    assert open_store(new.path).keys == new.keys
    assert [path.name for path in new.path.parent.iterdir()] == ["new.zarr"]


def test_jobs_that_fill_one_store_at_the_same_moment_end_with_the_store_of_one(new, store_case, tmp_path):
    def row(position):
        content = store_case.contents[position]
        return Row(store_case._outcome(position), content)

    def job(path, start):
        start.wait()
        try:
            fill_store(path, store_case.header, store_case.keys, store_case.shapes, row)
        except (StoreBusy, StoreError) as error:
            return str(error)
        return None

    expected = new.at(tmp_path / "alone.zarr")
    fill_store(expected.path, store_case.header, store_case.keys, store_case.shapes, row)
    for number in range(8):
        case, start = new.at(tmp_path / f"{number}.zarr"), threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            said = [f.result() for f in [pool.submit(job, case.path, start) for _ in range(3)]]
        assert None in said, said
        assert case.files() == expected.files()
        assert list(verify_store(case.path)) == []
        assert not run_folder(case.path).exists()


def test_an_empty_folder_becomes_the_store(new):
    new.path.mkdir()
    new.create()
    assert open_store(new.path).keys == new.keys


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_there_stays(new, kind):
    new.path.write_text("mine") if kind == "file" else (new.path / "mine").mkdir(parents=True)
    with pytest.raises(FileExistsError):
        new.create()
    assert new.path.read_text() == "mine" if kind == "file" else (new.path / "mine").exists()
    assert len(list(new.path.parent.iterdir())) == 1


def test_what_a_killed_job_left_goes_and_what_a_living_one_builds_stays(new):
    dead = subprocess.run([sys.executable, "-S", "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = creation.socket.gethostname()
    for pid in (dead.stdout.strip(), os.getppid()):
        (new.path.parent / f"new.zarr.creating-{host}-{pid}-0").mkdir()
    (new.path.parent / "new.zarr.creating-elsewhere-1-0").mkdir()
    create_store(new.path, new.header, new.keys, np.zeros_like(new.shapes))
    left = {path.name for path in new.path.parent.iterdir()} - {"new.zarr"}
    assert left == {f"new.zarr.creating-{host}-{os.getppid()}-0", "new.zarr.creating-elsewhere-1-0"}
