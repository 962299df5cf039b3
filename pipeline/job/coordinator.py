"""A preparation from start to end: plan, run the missing blocks, commit them in groups, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samdeblur.pipeline.job.blocks import BlockFailure, BlockReport, BlockTask
from samdeblur.pipeline.job.cluster import Feed, Resources, Runner, Workers
from samdeblur.pipeline.job.embeddings import require_embeddings
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
from samdeblur.pipeline.job.retries import Retries
from samdeblur.pipeline.job.summary import Summary, count_quarantined
from samdeblur.pipeline.job.worker import run_block
from samdeblur.pipeline.sources.base import Source
from samdeblur.storage.writing.commits import Committer, run_folder

COMMIT_SECONDS = 1.0
COMMIT_BLOCKS = 256
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
        StoreError: the store is of other images or another recipe, or embeddings are not those that are wanted.
        StoreBusy: another job writes to it.
        ClusterLost: no scheduler or no worker.
        WorkerKilled: workers die over a block again and again, and not over one image of it.
        DeviceFailed, Unusable: no device, or no worker, is left that can do the work.
        OSError: a disk does not take it, or does not give it. Whatever is raised, what was committed stays, and the
            same call goes on from there.
    """
    if not isinstance(workers, Workers):
        with Workers(Resources(workers=workers), settings.device) as own:
            return prepare(source, path, settings, options, own, progress, retry)
    options = options or StoreOptions()
    if settings.embeddings is not None:
        require_embeddings(source, settings)
    created = ensure_store(source, path, settings, options, here=workers.resources.scheduler is None)
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
    retries = Retries(runner, feed, summary)
    try:
        for found in runner.run(run_block, feed):
            summary.workers = max(summary.workers, runner.workers)
            if found is None:
                group.committer.lease.check()
            elif isinstance(found[1], BlockReport):
                group.reports += retries.done(found[0], found[1])
            elif isinstance(found[1], BlockFailure):
                retries.failed(found[0], found[1])
            else:
                retries.died(found[0], found[1])
            group.commit_when_due()
        group.reports += retries.rest()
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
