"""Jobs on devices that break, are full, or are not there; the devices are simulated.

A simulated runner hands out blocks as Dask does, to processes in places. What a place does to an image is a function of
the test. Real processes are in the last test.
"""

from __future__ import annotations

import errno
from collections import Counter, deque

import dask
import pytest
import torch

from samdeblur.pipeline import (
    DeviceFailed,
    PrepSettings,
    Resources,
    StoreOptions,
    Unusable,
    Workers,
    open_source,
    prepare,
    status,
)
from samdeblur.pipeline.job import retries, worker
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter
from samdeblur.pipeline.sources.base import BadImage
from samdeblur.pipeline.sources.folders import FolderSource

CPU = PrepSettings(device="cpu")
ONE = StoreOptions(block_size=1)
SHAPES = {f"{number:02d}": (24, 30 + number) for number in range(12)}
BROKEN = getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: an illegal memory access was encountered")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pairs):
    return write_pairs(tmp_path_factory.mktemp("data") / "toy", SHAPES)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory, store_case):
    path = tmp_path_factory.mktemp("undisturbed") / "toy.zarr"
    prepare(open_source(str(folder), "test"), path, CPU, ONE, 1)
    return store_case.at(path)


class Simulated:
    """Places that take turns; one in which a process fails fast takes three turns for each of the others."""

    distributed, dashboard = True, None

    def __init__(self, places):
        self.places = {place: f"{place}#0" for place in places}
        self.done, self.renewals, self.at = Counter(), [], ""

    @property
    def workers(self):
        return len(self.places)

    def renew(self, process):
        place, number = process.split("#")
        assert self.places[place] == process
        self.places[place] = f"{place}#{int(number) + 1}"
        self.renewals.append(process)

    def leave_out(self, process):
        assert self.places.pop(process.split("#")[0]) == process

    def run(self, function, feed):
        turns = deque()
        while (found := feed.next()) is not None:
            task, avoid = found
            turns = turns or deque(p for place in self.places for p in [place] * (3 if place == "bad" else 1))
            others = {place for place, process in self.places.items() if process not in avoid} or set(self.places)
            while (place := turns.popleft()) not in others:
                turns = turns or deque(self.places)
            self.at = place
            result = function(task)
            self.done[place] += isinstance(result, worker.BlockReport)
            yield task, result


@pytest.fixture
def job(folder, undisturbed, tmp_path, monkeypatch):
    """job(places, {place: what is done to the image and key, or the load}) -> summary, store, runner."""
    case = undisturbed.at(tmp_path / "toy.zarr")

    def call(places, segment=lambda place, key: None, load=lambda place: None, read=None):
        runner, stages, read_pair, finding = Simulated(places), worker.cached_stages, FolderSource.read, []
        find = SuperpixelSegmenter.segment

        def loading(*arguments):
            load(runner.at)
            return stages(*arguments)

        def reading(self, key):
            finding[:] = [key]
            if read is not None:
                read(runner.at, key)
            return read_pair(self, key)

        def segmenting(self, image):
            segment(runner.at, f"{image.shape[1] - 30:02d}")
            return find(self, image)

        monkeypatch.setattr(worker, "cached_stages", loading)
        monkeypatch.setattr(FolderSource, "read", reading)
        monkeypatch.setattr(SuperpixelSegmenter, "segment", segmenting)
        monkeypatch.setattr(worker, "worker_address", lambda: runner.places.get(runner.at, runner.at))
        monkeypatch.setattr(worker, "place", lambda device: runner.at)
        with Workers(Resources(workers=1)) as workers:
            monkeypatch.setattr(workers, "runner", lambda n_tasks: runner)
            call.runner = runner
            call.summary = prepare(open_source(str(folder), "test"), case.path, CPU, ONE, workers)
        return case

    call.path = case.path
    return call


@pytest.mark.parametrize(
    "error",
    [
        BROKEN,
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul`"),
    ],
    ids=str,
)
def test_a_broken_device_costs_itself_alone(job, undisturbed, error):
    """It is fast, so it would take most images, and lose them."""

    def segment(place, key):
        if place == "bad":
            raise error

    assert job(["bad", "good", "well"], segment).files() == undisturbed.files()
    assert status(job.path).quarantined == {}
    assert list(job.summary.left_out) == ["bad"]
    assert "error" in job.summary.left_out["bad"]
    assert job.runner.renewals == ["bad#0", "bad#1"]  # fresh processes, which fail as well
    assert job.runner.done["bad"] == 0


def test_a_process_whose_device_recovers_with_it_is_replaced_and_used(job, undisturbed):
    """An error that stays with the process that met it, as most do."""

    def segment(place, key):
        if place == "bad" and not job.runner.renewals:
            raise BROKEN

    assert job(["bad", "good"], segment).files() == undisturbed.files()
    assert (job.summary.left_out, job.summary.quarantined) == ({}, 0)
    assert job.runner.done["bad"] > 3


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), BROKEN, RuntimeError("CUDA driver error: unknown error")],
    ids=str,
)
def test_a_device_that_cannot_load_the_models_costs_itself_alone(job, undisturbed, error):
    def load(place):
        if place == "bad":
            raise error

    assert job(["bad", "good"], load=load).files() == undisturbed.files()
    assert list(job.summary.left_out) == ["bad"]


def test_a_job_whose_devices_all_break_ends_with_their_names_and_keeps_what_is_done(job, folder, undisturbed, tmp_path):
    def segment(place, key):
        if key >= "05":
            raise BROKEN

    with pytest.raises(DeviceFailed, match=r"no worker is left. bad: .*illegal memory access.*; good: ") as ended:
        job(["bad", "good"], segment)
    assert "\n" not in str(ended.value)
    found = status(job.path)
    assert (found.done >= 5, found.quarantined) == (True, {})


def test_an_image_that_breaks_every_device_is_quarantined_and_costs_no_device(job, undisturbed):
    """Devices do other blocks in between, so it is none of theirs."""

    def segment(place, key):
        if key == "07":
            raise BROKEN

    job(["good", "well"], segment)
    assert list(status(job.path).quarantined) == ["07"]
    assert "the device failed at this image again and again" in status(job.path).quarantined["07"]
    assert job.summary.left_out == {}
    assert status(job.path).done == 11


def test_an_image_that_breaks_the_only_device_is_quarantined_too(job):
    def segment(place, key):
        if key == "03":
            raise BROKEN

    job(["only"], segment)
    assert list(status(job.path).quarantined) == ["03"]


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'skimage'"),
        PermissionError(errno.EACCES, "Permission denied", "/home/someone/.cache"),
        AttributeError("module 'numpy' has no attribute 'bool8'"),
    ],
    ids=str,
)
def test_a_broken_environment_quarantines_nothing(job, undisturbed, error):
    def segment(place, key):
        if place == "bad":
            raise error

    assert job(["bad", "good", "well", "fine"], segment).files() == undisturbed.files()
    assert job.summary.quarantined == 0


def test_a_broken_environment_everywhere_ends_the_job(job):
    def segment(place, key):
        raise ModuleNotFoundError("No module named 'skimage'")

    with pytest.raises(Unusable, match="ModuleNotFoundError: No module named 'skimage'"):
        job(["bad", "good"], segment)
    assert status(job.path).quarantined == {}


def test_an_image_that_is_too_large_for_the_memory_is_quarantined_after_it_was_tried_alone(job):
    def segment(place, key):
        if key == "04":
            raise MemoryError

    job(["good"], segment)
    assert list(status(job.path).quarantined) == ["04"]
    assert "memory ran out at this image 3 times" in status(job.path).quarantined["04"]


# Many in a row


def test_a_place_whose_images_all_fail_alike_is_left_out_and_they_are_done_elsewhere(job, undisturbed, monkeypatch):
    monkeypatch.setattr(retries, "IN_A_ROW", 4)

    def segment(place, key):
        if place == "bad":
            raise RuntimeError(f"a driver of our own: error at {key}")  # none that is known

    assert job(["bad", "good"], segment).files() == undisturbed.files()
    assert job.summary.quarantined == 0
    assert "4 images in a row failed in the same way" in job.summary.left_out["bad"]


def test_images_that_are_all_gone_end_the_job_and_none_is_quarantined(job, monkeypatch):
    """Their folder is behind a link to a disk that was lost: other files are still there."""
    monkeypatch.setattr(retries, "IN_A_ROW", 6)

    lost = [True]

    def read(place, key):
        if lost and key >= "03":
            raise BadImage(f"{key}: Permission denied") from PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(Unusable, match=r"6 images in a row failed in the same way.*Permission denied"):
        job(["only"], read=read)
    assert (status(job.path).done, status(job.path).quarantined) == (3, {})
    lost.clear()
    job(["only"])
    assert status(job.path).done == 12


def test_fewer_in_a_row_or_of_several_kinds_are_quarantined(job, monkeypatch):
    monkeypatch.setattr(retries, "IN_A_ROW", 3)

    def segment(place, key):
        if key in ("02", "03", "04", "10", "11"):
            raise ValueError("odd" if int(key) % 2 else "even")

    job(["only"], segment)
    assert sorted(status(job.path).quarantined) == ["02", "03", "04", "10", "11"]


def test_damaged_files_are_quarantined_however_many_they_are(job, monkeypatch):
    monkeypatch.setattr(retries, "IN_A_ROW", 6)

    def read(place, key):
        raise BadImage(f"{key}: cannot be decoded")

    job(["only"], read=read)
    assert len(status(job.path).quarantined) == 12


def test_a_folder_that_was_full_and_is_empty_is_the_mounts(folder, tmp_path, write_pairs):
    """Behind a link: the root still holds its other folder."""
    root = write_pairs(tmp_path / "toy", dict(list(SHAPES.items())[:3]))
    (root / "blur").rename(tmp_path / "disk")
    (root / "blur").symlink_to(tmp_path / "disk")
    source = open_source(str(root), "test")
    for file in (tmp_path / "disk").iterdir():
        file.unlink()
    with pytest.raises(OSError, match="cannot be read now"):
        prepare(source, tmp_path / "toy.zarr", CPU, ONE, 1)


# Real processes


BREAKS = """
import os
from distributed import get_worker
from samdeblur.pipeline.job import worker
from samdeblur.pipeline.segmenters.superpixels import SuperpixelSegmenter

SuperpixelSegmenter.plain = getattr(SuperpixelSegmenter, "plain", SuperpixelSegmenter.segment)  # loaded twice

def on_a_device(self, image):
    if str(get_worker().name) == "1":
        with open(os.environ["BROKE"], "a") as file:
            file.write(f"{os.getpid()}\\n")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return self.plain(image)

SuperpixelSegmenter.segment = on_a_device
"""


def test_processes_on_a_broken_device_are_replaced_then_left_out(folder, undisturbed, tmp_path, monkeypatch):
    """The second of two workers; every process that takes its place meets the same."""
    (tmp_path / "breaks.py").write_text(BREAKS)
    monkeypatch.setenv("BROKE", str(tmp_path / "broke"))
    case = undisturbed.at(tmp_path / "toy.zarr")
    with dask.config.set({"distributed.worker.preload": [str(tmp_path / "breaks.py")]}):
        summary = prepare(open_source(str(folder), "test"), case.path, CPU, ONE, 2)
    assert status(case.path).quarantined == {}
    assert case.files() == undisturbed.files()
    processes = set((tmp_path / "broke").read_text().split()) if (tmp_path / "broke").exists() else set()
    assert len(processes) <= retries.DEVICE_ATTEMPTS
    assert len(summary.left_out) == (len(processes) == retries.DEVICE_ATTEMPTS)
    assert summary.quarantined == 0
