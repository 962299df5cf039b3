"""Batches that workers read: none is lost, and a worker that ends or falls silent is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from samdeblur.train.data import loader
from samdeblur.train.data.crops import CropDataset, Cutting, Share, collate
from samdeblur.train.data.loader import LoaderFailed, Parcel, crop_loader

WORKER = """
import sys
from samdeblur.train.data.loader import _start_worker
_start_worker(int(sys.argv[1]), 0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dataset(store):
    return CropDataset(store, store.keys, Cutting(24), 0, with_atoms=True)


@pytest.fixture
def workers():
    """Those of a loader that has given its first batch."""
    before = {child.pid for child in multiprocessing.active_children()}
    return lambda: [child for child in multiprocessing.active_children() if child.pid not in before]


def flat(batch):
    return [batch.blurred, batch.sharp, *(batch.atoms or ())]


def no_room(size):
    raise RuntimeError(f"unable to allocate shared memory(shm) for {size} bytes: No space left on device (28)")


def no_files(whole):
    raise OSError(24, "Too many open files")


@pytest.mark.parametrize("trouble", [None, "memory", "files"])
@pytest.mark.parametrize("with_atoms", [True, False])
def test_a_batch_comes_out_of_its_parcel_as_it_was(dataset, monkeypatch, trouble, with_atoms):
    crops = [dataset[sample] for sample in range(3)]
    batch = collate([crop if with_atoms else crop._replace(atoms=None) for crop in crops])
    if trouble == "memory":
        monkeypatch.setattr(torch.UntypedStorage, "_new_shared", no_room)
    elif trouble == "files":
        monkeypatch.setattr(loader.ForkingPickler, "dumps", no_files)
    arrived = Parcel.of(batch).open()
    assert bool(arrived.trouble) == bool(trouble)
    assert (arrived.batch.atoms is not None) == with_atoms
    for found, expected in zip(flat(arrived.batch), flat(batch), strict=True):
        assert torch.equal(found, expected)
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())


def test_batches_come_through_pipes_where_shared_memory_is_small_and_that_is_said(dataset, tmp_path):
    script = f"""
import json, warnings
from samdeblur.storage import open_store
from samdeblur.train.data.crops import CropDataset, Cutting, Share
from samdeblur.train.data.loader import crop_loader
store = open_store({str(dataset.store.path)!r})
with warnings.catch_warnings(record=True) as said:
    batches = list(crop_loader(CropDataset(store, store.keys, Cutting(24), 0, True), Share(4, 1, 6), 2))
print(json.dumps([[int(batch.blurred.sum()) for batch in batches], [str(one.message) for one in said]]))
"""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=120k small /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small /dev/shm")
    done = subprocess.run([*mount, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    sums, said = json.loads(done.stdout)
    expected = crop_loader(dataset, Share(4, 1, 6), 0)
    assert sums == [int(batch.blurred.sum()) for batch in expected]
    assert len(said) == 1
    assert "no room in shared memory (/dev/shm)" in said[0]


@pytest.mark.parametrize("place", [0, 1])
def test_a_worker_that_is_suspended_for_good_is_named_and_ends(dataset, monkeypatch, workers, place):
    monkeypatch.setattr(loader, "TICK", 0.01)
    monkeypatch.setattr(loader, "SILENT", 0.2)
    batches = crop_loader(dataset, Share(2, 1, 1000), 2)
    next(batches)
    children = sorted(workers(), key=lambda child: child.pid)
    os.kill(children[place].pid, signal.SIGSTOP)
    with pytest.raises(LoaderFailed, match=rf"process {children[place].pid}\) is suspended"):
        list(batches)
    for child in children:
        child.join()
        assert child.exitcode == -signal.SIGKILL


def test_a_worker_that_is_killed_is_named_with_what_to_do(dataset, workers):
    batches = crop_loader(dataset, Share(2, 1, 1000), 2)
    next(batches)
    child = workers()[0]
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(LoaderFailed, match=rf"process {child.pid}\) was ended by signal 9 .*take fewer loader_workers"):
        list(batches)


def test_who_waits_for_a_batch_is_asked_now_and_then(dataset, monkeypatch):
    monkeypatch.setattr(loader, "TICK", 0.01)

    def enough():
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        next(crop_loader(dataset, Share(2, 1, 1000), 1, waiting=enough))  # a worker is not up as fast as that


def test_workers_that_cannot_be_started_are_said_with_what_to_do(dataset, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loader.DataLoader, "__iter__", full)
    with pytest.raises(LoaderFailed, match=r"cannot be started: No space left on device .*set loader_workers=0"):
        next(crop_loader(dataset, Share(2, 1, 2), 1))


def test_a_worker_ends_when_its_process_is_killed():
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(process.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker,
    ):
        assert worker.stdout.readline() == "ready\n"
        process.kill()
        assert worker.wait() == 1
