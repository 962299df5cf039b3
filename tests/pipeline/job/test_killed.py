"""Runs that end early, and the same command again."""

from __future__ import annotations

import pytest
from toy_jobs import Killed, full, killed_at, run

from samdeblur.pipeline import (
    status,
)
from samdeblur.pipeline.job import coordinator, worker
from samdeblur.storage.writing.fence import StoreBusy


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_run_killed_while_working_redoes_only_what_was_not_committed(
    folder, undisturbed, tmp_path, monkeypatch, commit_each_block, block
):
    case = undisturbed.at(tmp_path / "toy.zarr")
    work = worker.run_block

    def killed(task):
        if task.block == block:
            work(task)
            raise Killed
        return work(task)

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "run_block", killed)
        with pytest.raises(Killed):
            run(folder, case.path)
    assert status(case.path).done == 2 * block
    assert status(case.path).pending == 5 - 2 * block
    summary = run(folder, case.path)
    assert (summary.images, summary.already_done) == (5 - 2 * block, 2 * block)
    assert case.files() == undisturbed.files()


@pytest.mark.parametrize(
    ("write", "group"),
    [(0, -1), (12, -1), (19, -1), (26, -1), (38, -1), (27, 1e9), (30, 1e9)],
    ids=lambda value: {-1: "a commit per block", 1e9: "one commit"}.get(value, value),
)
def test_a_run_killed_at_any_write_and_run_again_equals_an_undisturbed_one(
    folder, undisturbed, tmp_path, monkeypatch, write, group
):
    case = undisturbed.at(tmp_path / "toy.zarr")
    monkeypatch.setattr(coordinator, "COMMIT_SECONDS", group)
    with killed_at(write), pytest.raises(Killed):
        run(folder, case.path)
    run(folder, case.path)
    assert case.files() == undisturbed.files()


def test_a_full_disk_ends_the_run_and_a_later_run_goes_on(folder, undisturbed, tmp_path, monkeypatch):
    case = undisturbed.at(tmp_path / "toy.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "stage_block", full)
        with pytest.raises(OSError, match="No space left"):
            run(folder, case.path)
    assert status(case.path).pending == 5
    run(folder, case.path)
    assert case.files() == undisturbed.files()


def test_two_jobs_on_one_store_are_refused(folder, tmp_path):
    path = tmp_path / "toy.zarr"

    def second_job(images, quarantined):
        with pytest.raises(StoreBusy):
            run(folder, path)
        raise Killed

    with pytest.raises(Killed):
        run(folder, path, progress=second_job)
