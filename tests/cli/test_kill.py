"""A job that is killed goes on where it stopped, and ends with the same bytes."""

import os
import re
import signal
import subprocess
import sys

import pytest
from distributed import LocalCluster
from places import ROOT

from samdeblur.storage import open_store


def contents(store):
    return {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture(scope="session")
def installed_plugin(tmp_path_factory):
    """The package of docs/segmenters.md, installed in a folder of its own."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    text = (ROOT / "docs/segmenters.md").read_text()
    for name, code in re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```", text, re.S | re.M):
        (project / name).write_text(code)
    install = ["install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site, project]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    return site


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

    def stop(store, number, *options):
        told, tells = os.pipe()
        arguments = ["run", pairs, store, "--split", "test", "--workers", "1", "--block-size", "2"]
        arguments += [*(options or ("--segmenter", "superpixels")), str(tells)]
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
    assert (finished.code, "2 done before" in finished.out) == (0, True)
    assert contents(other) == contents(store)


def test_a_plugin_of_another_package_makes_a_store_that_is_stopped_resumed_and_the_same(
    stopped_job, installed_plugin, prep_run, samdeblur, pairs, tmp_path, monkeypatch
):
    options = ("--segmenter", "regions", "--set-segmenter", "scales=[300, 60]", "--set-segmenter", "min_size=20")
    monkeypatch.syspath_prepend(installed_plugin)
    monkeypatch.setenv("PYTHONPATH", str(installed_plugin))
    stopped, whole = tmp_path / "stopped.zarr", tmp_path / "whole.zarr"
    assert stopped_job(stopped, signal.SIGKILL, *options) == -signal.SIGKILL
    refused = prep_run(pairs, stopped, *options, "--set-segmenter", "sigma=2")
    assert (refused.code, "segmenter.sigma: was 0.8, now 2.0" in refused.error) == (2, True)
    finished = prep_run(pairs, stopped, *options)
    assert (finished.code, "2 done before" in finished.out) == (0, True)
    assert prep_run(pairs, whole, *options).code == 0
    assert contents(stopped) == contents(whole)
    store = open_store(whole)
    recipe = {"name": "regions", "version": 1, "scales": [300, 60], "sigma": 0.8, "min_size": 20}
    assert store.header.recipe["segmenter"] == recipe
    assert min(store.atoms(key).n_masks for key in store.keys) > 2
    assert all((store.records(key)["predicted_iou"] <= 1).all() for key in store.keys)
    assert '"segmenter": "regions-segmenter 1.0"' in (tmp_path / "whole.zarr.run/blocks.jsonl").read_text()


def test_a_worker_without_the_plugin_says_so(installed_plugin, prep_run, pairs, tmp_path, monkeypatch):
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as elsewhere:  # whose process was started without the folder
        monkeypatch.syspath_prepend(installed_plugin)
        options = ("--segmenter", "regions", "--scheduler", elsewhere.scheduler_address, "--block-size", 1)
        failed = prep_run(pairs, tmp_path / "s.zarr", *options)
    assert failed.code == 1
    assert "no worker is left" in failed.err
    assert "no segmenter 'regions' in the packages on" in failed.err
