"""A preparation from start to end: plan, run the missing blocks, commit them in groups, report."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samdeblur.pipeline.cluster import default_workers, run_tasks
from samdeblur.pipeline.plan import StoreOptions, block_tasks, ensure_store
from samdeblur.pipeline.recipe import PrepSettings
from samdeblur.pipeline.sources import Source
from samdeblur.pipeline.worker import BlockReport, run_block
from samdeblur.storage import MaskStore, open_store
from samdeblur.storage.commits import Committer, run_folder
from samdeblur.storage.layout import DONE, QUARANTINED

COMMIT_SECONDS = 1.0
COMMIT_BLOCKS = 256
BLOCK_LOG = "blocks.jsonl"


@dataclass
class Summary:
    """What a run did. `seconds_by_stage` adds up over the workers."""

    images: int = 0
    already_done: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    workers: int = 0
    seconds_by_stage: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def prepare(
    source: Source,
    path: Path,
    settings: PrepSettings,
    options: StoreOptions | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda images, quarantined: None,
) -> Summary:
    """Prepare a source into a store, or finish one that was begun.

    Args:
        workers: processes; by default one per GPU, or one per core.
        progress: called with the images and the quarantined images of each group of blocks once it is on the disk.

    Raises:
        StoreError: the store is of other images or another recipe.
        StoreBusy: another job writes to it.
        OSError: the disk does not take it; what was committed stays, and the same call goes on from there.
    """
    ensure_store(source, path, settings, options or StoreOptions())
    committer = Committer(path)
    try:
        pending = committer.pending_blocks()
        workers = min(workers or default_workers(settings.device), max(1, len(pending)))
        rows = [row for block in pending for row in committer.header.block_range(block)]
        summary = Summary(already_done=committer.header.n_images - len(rows), workers=workers)
        tasks = block_tasks(source, path, committer, pending, settings)
        start = last = time.monotonic()
        group: list[BlockReport] = []

        def commit() -> None:
            nonlocal last
            committer.commit([report.staged for report in group])
            _log(path, group)
            for report in group:
                quarantined = sum(outcome.state == QUARANTINED for outcome in report.staged.outcomes)
                summary.images += len(report.staged.outcomes)
                summary.quarantined += quarantined
                for stage, seconds in report.seconds.items():
                    summary.seconds_by_stage[stage] += seconds
                progress(len(report.staged.outcomes), quarantined)
            group.clear()
            last = time.monotonic()

        for report in run_tasks(run_block, tasks, workers):
            group.append(report)
            if time.monotonic() - last > COMMIT_SECONDS or len(group) >= COMMIT_BLOCKS:
                commit()
        commit()
        summary.seconds = time.monotonic() - start
        return summary
    finally:
        committer.close()


def _log(path: Path, reports: list[BlockReport]) -> None:
    with open(run_folder(path) / BLOCK_LOG, "a") as log:
        for report in reports:
            row = {
                "block": report.staged.block,
                "images": len(report.staged.outcomes),
                "seconds": report.seconds,
                "environment": report.environment,
            }
            log.write(json.dumps(row) + "\n")


@dataclass(frozen=True)
class Status:
    """Where a store stands; `quarantined` maps a key to its reason."""

    store: MaskStore
    done: int
    pending: int
    quarantined: dict[str, str]


def status(path: str | Path) -> Status:
    """Read where a store stands. Raises FileNotFoundError, StoreError."""
    store = open_store(path)
    bad = [store.keys[row] for row in np.flatnonzero(store.states == QUARANTINED)]
    done = int((store.states == DONE).sum())
    return Status(store, done, len(store) - done - len(bad), {key: store.error(key) for key in bad})
