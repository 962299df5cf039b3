"""What a run of a preparation did, added up block by block in memory that does not grow."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from samdeblur.pipeline.job.blocks import BlockFailure, BlockReport
from samdeblur.storage.format.layout import QUARANTINED

SLOWEST = 5
DEVICE_STAGES = ("predeblur", "segment")


@dataclass
class Summary:
    """What a run did.

    Attributes:
        images, quarantined: of the blocks this run committed.
        already_done: images that an earlier run had finished.
        seconds: from the first block to the last commit.
        workers: the most processes that were at work.
        seconds_by_stage: added up over the workers.
        slowest: (seconds, key) of the images that took longest, longest first.
        splits: times that a GPU's memory did not suffice for the masks of an image at once.
        failures: "what, place" -> blocks it could not do, which were done again.
        left_out: place -> why it is not used any more.
        died: blocks whose workers died.
        environments: versions and hardware -> blocks; exact results are the same within one alone.
    """

    images: int = 0
    already_done: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    workers: int = 0
    seconds_by_stage: Counter[str] = field(default_factory=Counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    splits: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    died: int = 0
    environments: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def device_share(self) -> float:
        """Share of the workers' time in which a network was at work: pre-deblurring or segmenting."""
        busy = sum(self.seconds_by_stage[stage] for stage in DEVICE_STAGES)
        return busy / (self.seconds * self.workers) if self.seconds and self.workers else 0.0

    def add(self, report: BlockReport) -> None:
        self.images += len(report.staged.outcomes)
        self.quarantined += count_quarantined(report)
        self.seconds_by_stage.update(report.seconds)
        took = ((round(seconds, 3), key) for key, seconds in report.image_seconds.items())
        self.slowest = heapq.nlargest(SLOWEST, [*self.slowest, *took])
        self.splits += report.splits
        self.environments[", ".join(f"{name} {value}" for name, value in report.environment.items())] += 1

    def add_failure(self, failure: BlockFailure) -> None:
        where = ", ".join(part for part in (failure.place, failure.worker) if part)
        self.failures[f"{failure.error}, on {where or 'this machine'}"] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "already_done": self.already_done,
            "quarantined": self.quarantined,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.rate, 4),
            "workers": self.workers,
            "seconds_by_stage": {name: round(seconds, 3) for name, seconds in self.seconds_by_stage.items()},
            "device_share": round(self.device_share, 3),
            "slowest": [{"key": key, "seconds": seconds} for seconds, key in self.slowest],
            "memory_splits": self.splits,
            "failures": dict(self.failures),
            "left_out": dict(self.left_out),
            "died": self.died,
            "environments": dict(self.environments),
        }


def count_quarantined(report: BlockReport) -> int:
    return sum(outcome.state == QUARANTINED for outcome in report.staged.outcomes)
