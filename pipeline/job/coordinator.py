"""A preparation from start to end: plan, run the missing blocks, commit them in groups, report."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samdeblur.pipeline.job.blocks import BlockFailure, BlockReport, BlockTask
from samdeblur.pipeline.job.cluster import Feed, Resources, Runner, WorkerKilled, Workers
from samdeblur.pipeline.job.interrupts import uninterrupted
from samdeblur.pipeline.job.plan import (
    BLOCK_LOG,
    StoreOptions,
    block_tasks,
    check_same,
    ensure_store,
    retry_quarantined,
)
from samdeblur.pipeline.job.recipe import PrepSettings
from samdeblur.pipeline.job.summary import Summary, count_quarantined
from samdeblur.pipeline.job.worker import run_block, working_on
from samdeblur.pipeline.sources.base import Source
from samdeblur.storage import MaskStore, open_store
from samdeblur.storage.format.layout import DONE, QUARANTINED
from samdeblur.storage.writing.commits import Committer, run_folder
from samdeblur.storage.writing.lease import lease_holder

COMMIT_SECONDS = 1.0
COMMIT_BLOCKS = 256
ATTEMPTS = 3  # at a block, before what goes wrong with it ends the run
RUN_LOG = "runs.jsonl"

Progress = Callable[[int, int], None]


def prepare(
    source: Source,
    path: Path,
    settings: PrepSettings,
    options: StoreOptions | None = None,
    workers: int | Workers | None = None,
    progress: Progress = lambda images, quarantined: None,
    retry: bool = False,
) -> Summary:
    """Prepare a source into a store, or finish one that was begun.

    Args:
        workers: processes, by default one per GPU, or one per core; or workers that several jobs share.
        progress: called with the images and the quarantined images of each group of blocks once it is on the disk.
        retry: do blocks with quarantined images again.

    Raises:
        StoreError: the store is of other images or another recipe.
        StoreBusy: another job writes to it.
        ClusterLost: no scheduler or no worker.
        WorkerKilled: workers die over a block again and again, and not over one image of it.
        OSError: a disk does not take it, or does not give it. Whatever is raised, what was committed stays, and the
            same call goes on from there.
    """
    if not isinstance(workers, Workers):
        with Workers(Resources(workers=workers), settings.device) as own:
            return prepare(source, path, settings, options, own, progress, retry)
    options = options or StoreOptions()
    created = ensure_store(source, path, settings, options)
    committer = Committer(path)
    try:
        if not created:
            check_same(source, path, settings, options)
        if retry:
            retry_quarantined(source, committer, path)
        pending = committer.pending_blocks()
        rows = sum(len(committer.header.block_range(block)) for block in pending)
        summary = Summary(already_done=committer.header.n_images - rows)
        if pending:
            feed = Feed(block_tasks(source, path, committer, pending, settings))
            _run(workers.runner(len(pending)), feed, _Group(path, committer, summary, progress))
        return summary
    finally:
        committer.close()


def _run(runner: Runner, feed: Feed[BlockTask], group: _Group) -> None:
    """Every block of the feed, until it is committed. Whatever ends this early, finished blocks are committed."""
    start = time.monotonic()
    summary = group.summary
    try:
        for found in runner.run(run_block, feed):
            summary.workers = max(summary.workers, runner.workers)
            if found is None:
                group.committer.lease.check()
            elif isinstance(found[1], BlockReport):
                group.reports.append(found[1])
            else:
                _do_again(found[0], found[1], runner, feed, summary)
            group.commit_when_due()
    finally:
        group.commit()
        summary.seconds = time.monotonic() - start
        group.log(RUN_LOG, [{"ended": time.time()} | summary.as_json()])


@dataclass
class _Group:
    """Blocks that are done and not committed yet."""

    path: Path
    committer: Committer
    summary: Summary
    progress: Progress

    def __post_init__(self) -> None:
        self.reports: list[BlockReport] = []
        self._last = time.monotonic()

    def commit_when_due(self) -> None:
        if time.monotonic() - self._last > COMMIT_SECONDS or len(self.reports) >= COMMIT_BLOCKS:
            self.commit()

    def commit(self) -> None:
        reports, self.reports = self.reports, []  # what cannot be committed is not tried twice
        self._last = time.monotonic()
        if not reports:
            return
        with uninterrupted():
            self.committer.commit([report.staged for report in reports])
            self.log(BLOCK_LOG, [_log_row(report) for report in reports])
            for report in reports:
                self.summary.add(report)
                self.progress(len(report.staged.outcomes), count_quarantined(report))

    def log(self, name: str, rows: list[dict[str, Any]]) -> None:
        with open(run_folder(self.path) / name, "a") as log:
            log.writelines(json.dumps(row) + "\n" for row in rows)


def _log_row(report: BlockReport) -> dict[str, Any]:
    return {
        "block": report.staged.block,
        "images": len(report.staged.outcomes),
        "wall": report.wall,
        "seconds": report.seconds,
        "environment": report.environment,
    }


def _do_again(
    task: BlockTask, failure: BlockFailure | WorkerKilled, runner: Runner, feed: Feed[BlockTask], summary: Summary
) -> None:
    """Put a block back that was not done; raises what went wrong when that is the end of it.

    A block whose workers died is done with care; when they die again, and always at the same image, this one is
    quarantined.
    """
    again = replace(task, attempt=task.attempt + 1)
    if isinstance(failure, BlockFailure):
        summary.add_failure(failure)
        if again.attempt >= ATTEMPTS or not runner.distributed:
            raise failure.error
        again = replace(again, failed_on=(*task.failed_on, failure.worker))
    else:
        summary.died += 1
        at = working_on(task.staging) if task.careful else []
        if len(at) > 1 and len({*at}) == 1 and at[0] not in task.skip:
            reason = f"{len(at)} workers died at this image; out of memory, most often: give workers more of it"
            again = replace(task, attempt=0, skip={**task.skip, at[0]: reason})
        elif again.attempt >= ATTEMPTS:
            keys = list(task.source.keys)
            raise WorkerKilled(f"block {task.block} ({keys[0]} to {keys[-1]}): {failure}")
        again = replace(again, careful=True)
        for attempt in Path(task.staging).parent.glob(f"{Path(task.staging).name}-*"):
            shutil.rmtree(attempt, ignore_errors=True)
    feed.put_back(again, again.failed_on)


@dataclass(frozen=True)
class Status:
    """Where a store stands.

    Attributes:
        quarantined: key -> reason.
        job: host, pid and time of renewal of the job that holds the store; None when none does.
    """

    store: MaskStore
    done: int
    pending: int
    quarantined: dict[str, str]
    job: dict[str, Any] | None = None


def status(path: str | Path) -> Status:
    """Read where a store stands. Raises FileNotFoundError, StoreError."""
    store = open_store(path)
    bad = [store.keys[row] for row in np.flatnonzero(store.states == QUARANTINED)]
    done = int((store.states == DONE).sum())
    job = None if store.path.remote else lease_holder(run_folder(store.path.path))
    return Status(store, done, len(store) - done - len(bad), {key: store.error(key) for key in bad}, job)
