"""Tasks on a Dask cluster inside this process, and what becomes of a job when parts of it fail."""

from __future__ import annotations

import errno
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from distributed import LocalCluster

from samdeblur.pipeline import (
    ClusterLost,
    PrepSettings,
    Resources,
    StoreOptions,
    WorkerKilled,
    Workers,
    open_source,
    prepare,
    status,
)
from samdeblur.pipeline.job import coordinator, retries, worker
from samdeblur.pipeline.job.blocks import BlockFailure, NotShared
from samdeblur.pipeline.job.cluster import WINDOW, Feed, InProcess, OnDask
from samdeblur.pipeline.job.interrupts import uninterrupted
from samdeblur.pipeline.sources.base import SourceLost
from samdeblur.pipeline.sources.folders import FolderSource
from samdeblur.storage.writing.commits import run_folder

CPU = PrepSettings(device="cpu")
ONE = StoreOptions(block_size=1)
SHAPES = {f"{number:02d}": (24 + number, 30) for number in range(6)}


@pytest.fixture(scope="module")
def cluster():
    """A scheduler and two workers, in this process."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture
def runner(cluster):
    runner = OnDask(cluster.scheduler_address, patience=5)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_pairs):
    return write_pairs(tmp_path_factory.mktemp("data") / "toy", SHAPES)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory, store_case):
    path = tmp_path_factory.mktemp("undisturbed") / "toy.zarr"
    prepare(open_source(str(folder), "test"), path, CPU, ONE, 1)
    return store_case.at(path)


@pytest.fixture
def run(cluster, folder, undisturbed, tmp_path):
    """run(**arguments of prepare) -> the store case, prepared on the cluster."""
    case = undisturbed.at(tmp_path / "toy.zarr")

    def call(**arguments):
        with Workers(Resources(cluster.scheduler_address, patience=5), "cpu") as workers:
            call.summary = prepare(open_source(str(folder), "test"), case.path, CPU, ONE, workers, **arguments)
        return case

    call.path = case.path
    return call


def test_every_task_is_done_once_and_results_come_with_their_tasks(runner):
    found = dict(item for item in runner.run(_square, Feed(iter(range(100)))) if item is not None)
    assert found == {number: number**2 for number in range(100)}
    assert (runner.workers, runner.distributed) == (2, True)


def _square(number):
    return number**2


def test_no_more_tasks_are_asked_for_than_a_window(runner):
    asked = 0

    def tasks():
        nonlocal asked
        for number in range(40):
            asked += 1
            yield number

    most = 0
    for done, _ in enumerate(runner.run(_square, Feed(tasks())), 1):
        most = max(most, asked - done)
    assert most <= WINDOW * 2


def test_what_is_put_back_is_done_again_also_when_nothing_else_is_left(runner):
    feed, results = Feed(iter(["a", "b"])), []
    for item in runner.run(str.upper, feed):
        if item is not None:
            results.append(item)
            if item[0] == "b":
                feed.put_back("c", avoid=list(runner._refresh_workers())[:1])
    assert sorted(results) == [("a", "A"), ("b", "B"), ("c", "C")]


def test_an_exception_of_a_task_ends_the_run(runner):
    with pytest.raises(ZeroDivisionError):
        list(runner.run(lambda number: 1 / number, Feed(iter([1, 0, 2]))))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answered for 1 s"),
        ("nonsense://x", "not the address of a Dask scheduler"),
    ],
)
def test_a_scheduler_that_is_not_there_is_not_waited_for_without_end(address, said):
    with pytest.raises(ClusterLost, match=said):
        OnDask(address, patience=1)


def test_a_cluster_without_workers_is_given_up(monkeypatch):
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50) as empty,
        Workers(Resources(empty.scheduler_address, patience=0.5)) as workers,
        pytest.raises(ClusterLost, match="no Dask worker for"),
    ):
        list(workers.runner(1).run(_square, Feed(iter([1]))))


def test_one_worker_runs_in_this_process_and_workers_are_kept_for_the_next_job():
    started = []
    with Workers(Resources(workers=1)) as workers:
        workers.on_start = started.append
        assert isinstance(workers.runner(10), InProcess)
        assert workers.runner(3) is workers.runner(10)
    assert started == [None]


def test_a_job_on_a_cluster_ends_with_the_bytes_of_one_in_this_process(run, undisturbed):
    assert run().files() == undisturbed.files()
    assert (run.summary.images, run.summary.workers) == (6, 2)
    assert sorted(path.name for path in run_folder(run.path).iterdir()) == ["blocks.jsonl", "runs.jsonl"]


@pytest.fixture
def lost(monkeypatch):
    """lost(key=times): reading an image fails as often as if the file system were gone; returns the keys read."""

    def call(times):
        seen, read = [], FolderSource.read

        def read_or_fail(self, key):
            seen.append(key)
            if seen.count(key) <= times.get(key, 0):
                raise SourceLost(errno.ESTALE, "Stale file handle", f"/data/blur/{key}.png")
            return read(self, key)

        monkeypatch.setattr(FolderSource, "read", read_or_fail)
        return seen

    return call


def test_a_block_a_worker_cannot_do_is_done_again_and_said(run, undisturbed, lost):
    lost({"03": 2, "05": 1})
    assert run().files() == undisturbed.files()
    assert run.summary.quarantined == 0
    assert sum(run.summary.failures.values()) == 3
    assert all("Stale file handle" in failure and "inproc://" in failure for failure in run.summary.failures)


def test_a_block_no_worker_can_do_ends_the_job_and_the_others_are_kept(run, folder, undisturbed, lost):
    seen = lost({"03": 99})
    with pytest.raises(SourceLost, match="Stale file handle"):
        run()
    assert seen.count("03") == retries.ATTEMPTS
    found = status(run.path)
    assert (found.done >= 1, found.quarantined) == (True, {})
    seen.extend(["03"] * 99)  # the mount is back
    assert run().files() == undisturbed.files()


def test_a_lost_source_ends_a_job_in_one_process_at_once(folder, undisturbed, tmp_path, lost):
    case = undisturbed.at(tmp_path / "toy.zarr")
    seen = lost({"03": 1})
    with pytest.raises(SourceLost):
        prepare(open_source(str(folder), "test"), case.path, CPU, ONE, 1)
    assert seen.count("03") == 1
    assert status(case.path).done == 3
    prepare(open_source(str(folder), "test"), case.path, CPU, ONE, 1)
    assert case.files() == undisturbed.files()


def test_a_worker_that_does_not_see_the_store_says_so(folder, tmp_path, undisturbed):
    source = open_source(str(folder), "test")
    task = next(coordinator.block_tasks(source, undisturbed.path, _Staging(undisturbed.header, tmp_path), [0], CPU))
    report = worker.run_block(replace(task, store=str(tmp_path / "elsewhere.zarr")))
    assert isinstance(report, BlockFailure)
    assert isinstance(report.error, NotShared)
    assert "workers need access to the file system of the store" in str(report.error)


class _Staging:
    """As much of a Committer as the making of tasks needs."""

    def __init__(self, header, folder):
        self.header, self.folder = replace(header, n_images=6, block_size=1), folder

    def staging(self, block):
        return self.folder / str(block)


def test_two_attempts_at_a_block_never_share_a_folder(folder, tmp_path, undisturbed):
    source = open_source(str(folder), "test")
    header = status(undisturbed.path).store.header
    task = next(coordinator.block_tasks(source, undisturbed.path, _Staging(header, tmp_path), [0], CPU))
    first, second = worker.run_block(task).staged, worker.run_block(task).staged
    assert first.staging != second.staging
    assert first.shard_digests == second.shard_digests


def test_a_block_whose_workers_die_at_one_image_is_done_without_it(folder, undisturbed, tmp_path, monkeypatch):
    """A runner that says so stands for the deaths; real ones are in the fault campaign."""
    case, tasks = undisturbed.at(tmp_path / "toy.zarr"), []

    class Deadly(InProcess):
        distributed = True

        def run(self, function, feed):
            while (found := feed.next()) is not None:
                tasks.append(task := found[0])
                if "03" in task.source.keys and "03" not in task.skip:
                    for attempt in range(4 if task.careful else 0):
                        _leave(task.staging, attempt, "03")
                    yield task, WorkerKilled("4 workers died")
                else:
                    yield task, function(task)

    with Workers(Resources(workers=1)) as workers:
        monkeypatch.setattr(workers, "runner", lambda n_tasks: Deadly())
        summary = prepare(open_source(str(folder), "test"), case.path, CPU, ONE, workers)
    assert [(task.careful, dict(task.skip) != {}) for task in tasks if "03" in task.source.keys] == [
        (False, False),
        (True, False),
        (True, True),
    ]
    assert "4 workers died at this image" in status(case.path).quarantined["03"]
    assert (summary.died, summary.quarantined) == (2, 1)
    prepare(open_source(str(folder), "test"), case.path, CPU, ONE, 1, retry=True)
    assert case.files() == undisturbed.files()


def _leave(staging, attempt, key):
    """A staging folder as a dead worker leaves it."""
    os.makedirs(f"{staging}-{attempt}")
    with open(f"{staging}-{attempt}/{worker.WORKING}", "w") as file:
        file.write(key)


def test_a_block_whose_workers_die_anywhere_ends_the_job(folder, tmp_path, monkeypatch):
    class Deadly(InProcess):
        distributed = True

        def run(self, function, feed):
            while (found := feed.next()) is not None:
                yield found[0], WorkerKilled("4 workers died")

    with Workers(Resources(workers=1)) as workers:
        monkeypatch.setattr(workers, "runner", lambda n_tasks: Deadly())
        with pytest.raises(WorkerKilled, match=r"block 0 \(00 to 00\): its workers died 3 times, .*--memory-limit"):
            prepare(open_source(str(folder), "test"), tmp_path / "toy.zarr", CPU, ONE, workers)


def test_a_careful_block_has_the_same_bytes(folder, undisturbed, tmp_path):
    header = status(undisturbed.path).store.header
    source = open_source(str(folder), "test")
    task = next(coordinator.block_tasks(source, undisturbed.path, _Staging(header, tmp_path), [2], CPU))
    plain, careful = worker.run_block(task), worker.run_block(replace(task, careful=True))
    assert careful.staged.shard_digests == plain.staged.shard_digests
    assert worker.working_on(task.staging) == ["02"]


def test_an_interrupt_in_a_protected_part_waits_for_its_end():
    steps = []

    def protected(number):
        with uninterrupted():
            signal.raise_signal(number)
            steps.append("finished")

    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.signal(number, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                protected(number)
        finally:
            signal.signal(number, before)
    assert steps == ["finished"] * 2


def test_outside_the_main_thread_a_protected_part_is_nothing_special():
    results = []

    def work():
        with uninterrupted():
            results.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [1]


def test_a_summary_stays_small(folder, undisturbed, tmp_path):
    summary = prepare(open_source(str(folder), "test"), tmp_path / "toy.zarr", CPU, ONE, 1)
    assert len(summary.slowest) == 5
    assert summary.slowest == sorted(summary.slowest, reverse=True)
    assert 0 < summary.device_share <= 1
    assert np.isclose(summary.rate, 6 / summary.seconds)
    assert sum(summary.environments.values()) == 6
