"""Worker processes of our own, which are started, suspended, starved and left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings

import psutil
import pytest

from samdeblur.pipeline import Resources, Workers
from samdeblur.pipeline.job import local
from samdeblur.pipeline.job.cluster import Feed, OnDask
from samdeblur.pipeline.job.local import MemoryTooSmall, local_cluster, memory_of_each
from samdeblur.storage.processes import Note

GB = 1 << 30
SCRIPT = """
import os
from samdeblur.pipeline import Resources, Workers
from samdeblur.pipeline.job.cluster import Feed

class Mine:
    def __call__(self, number):
        return number**2

print("begins", os.getpid())
with Workers(Resources(workers=2), "cpu") as workers:
    runner = workers.runner(4)
    found = dict(item for item in runner.run(Mine(), Feed(iter(range(4)))) if item is not None)
print(sorted(found.items()))
"""


process_of = eval("lambda number: __import__('os').getpid()")  # travels as code; workers do not see these modules


@pytest.mark.parametrize("asked", [0, -5 * GB, 1, 300_000_000])
def test_less_memory_than_the_libraries_take_is_refused_with_what_would_do(asked):
    taken = psutil.Process().memory_info().rss
    with pytest.raises(MemoryTooSmall, match=rf"--memory-limit: .* give {local.ROOM * taken / 1e9:.1f} GB at least"):
        memory_of_each(4, asked)
    with pytest.raises(MemoryTooSmall):
        Workers(Resources(workers=2, memory_limit=asked), "cpu")


def test_memory_is_shared_evenly_and_never_into_shares_too_small(monkeypatch):
    assert memory_of_each(2, 64 * GB) == 64 * GB
    monkeypatch.setattr(local, "MEMORY_LIMIT", 100 * GB)
    assert memory_of_each(4, None) == 25 * GB
    most = local.most_workers()
    monkeypatch.setattr("samdeblur.pipeline.job.cluster.CPU_COUNT", 4 * most)
    assert Workers(Resources(), "cpu").count == most
    with pytest.raises(MemoryTooSmall, match=rf"--workers {most} at most"):
        memory_of_each(2 * most, None)


def test_a_worker_that_is_suspended_for_good_is_named_and_replaced(monkeypatch):
    monkeypatch.setattr(local, "LOOK", 0.05)
    monkeypatch.setattr(local, "SILENT", 3.0)
    with warnings.catch_warnings(record=True) as said, local_cluster(1, [], 8 * GB) as cluster:
        warnings.simplefilter("always")
        runner = OnDask(cluster.scheduler_address, own="8 GB each")
        ((_, suspended),) = (item for item in runner.run(process_of, Feed(iter([0]))) if item is not None)
        os.kill(suspended, signal.SIGSTOP)
        others = {item[1] for item in runner.run(process_of, Feed(iter([1, 2]))) if item is not None}
        runner.close()
    assert suspended not in others
    assert len(others) >= 1
    notes = [str(one.message) for one in said if isinstance(one.message, Note)]
    assert any(f"process {suspended}" in note and "it is suspended; another takes its place" in note for note in notes)


def test_what_workers_are_at_is_not_waited_for_when_something_ends_the_job():
    class Ends(BaseException):
        pass

    def job():
        with local_cluster(1, [], 8 * GB) as cluster, cluster.get_client() as client:
            client.submit(signal.pause, pure=False)
            processes.extend(local._processes())
            raise Ends

    processes: list[multiprocessing.process.BaseProcess] = []
    with pytest.raises(Ends):
        job()
    assert processes
    assert local._processes() == []


def test_a_script_needs_no_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    begins, found = done.stdout.splitlines()
    assert begins.startswith("begins")
    assert found == "[(0, 0), (1, 1), (2, 4), (3, 9)]"
