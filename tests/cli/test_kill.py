"""A job that is killed goes on where it stopped, and ends with the same bytes."""

import os
import signal
import subprocess
import sys

import pytest


def contents(store):
    return {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture
def stopped_job(pairs, tmp_path):
    """Start `samdeblur-prep run` on a store and send it a signal when the first block is committed; its exit code.

    The job says so itself: it writes a line to a pipe after each commit, and waits for an answer that never comes.
    """
    script = """
import os, signal, sys
from samdeblur.cli import prep
from samdeblur.pipeline.job import coordinator

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
tells = int(sys.argv.pop())
coordinator.COMMIT_SECONDS = 0
commit = coordinator._Group.commit

def commit_and_wait(self):
    commit(self)
    if self.summary.images == 2:
        os.write(tells, b"committed")
        os.read(0, 1)

coordinator._Group.commit = commit_and_wait
prep.main()
"""

    def stop(store, number):
        told, tells = os.pipe()
        arguments = ["run", pairs, store, "--split", "test", "--workers", "1", "--block-size", "2"]
        arguments += ["--segmenter", "superpixels", str(tells)]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[tells],
        )
        os.close(tells)
        assert os.read(told, 9) == b"committed"
        process.send_signal(number)
        process.stdin.close()  # the answer, to a job that commits once more before it ends
        code = process.wait(timeout=60)
        os.close(told)
        return code

    return stop


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_preparation_finishes_with_the_bytes_of_an_undisturbed_one(
    stopped_job, prep_run, samdeblur, pairs, store, tmp_path, number
):
    other = tmp_path / "stopped.zarr"
    assert stopped_job(other, number) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "2 of 5 images done, 3 pending" in samdeblur("prep", "status", other).out
    finished = prep_run(pairs, other)
    assert (finished.code, "2 were done before" in finished.out) == (0, True)
    assert contents(other) == contents(store)
