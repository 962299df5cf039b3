"""What goes to a worker and what comes back: a block to do, the report of one done, or why it could not be."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from samdeblur.pipeline.job.blame import Blame
from samdeblur.pipeline.job.recipe import PrepSettings
from samdeblur.pipeline.sources.base import Source
from samdeblur.storage.format.layout import Header
from samdeblur.storage.writing.commits import StagedBlock


@dataclass(frozen=True)
class BlockTask:
    """What a worker needs to know.

    Attributes:
        staging: each attempt adds a name of its own to this path, so that none writes into the folder of another.
        source: of the images of this block alone.
        shapes: their planned sizes.
        attempt: how many have failed, or died, before this one.
        failed_on: addresses of the workers on which it failed.
        careful: one image after the other, and the one in work is written down, to know which a dead worker was at.
        skip: key -> why an image is quarantined untried.
    """

    store: str
    header: Header
    block: int
    staging: str
    source: Source
    shapes: tuple[tuple[int, int], ...]
    settings: PrepSettings
    attempt: int = 0
    failed_on: tuple[str, ...] = ()
    careful: bool = False
    skip: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockReport:
    """What a worker did: the staged block, seconds spent by stage and by image, and the environment it ran in.

    Attributes:
        worker, place: address of the process, and where it is: the host, and its GPU.
        alike: name of the errors of all images, where they are alike and may be none of theirs.
        wall: seconds from start to end; stages overlap.
        splits: times that the GPU's memory did not suffice for the masks brought to full size together.
    """

    staged: StagedBlock
    seconds: dict[str, float]
    wall: float = 0.0
    image_seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    splits: int = 0
    worker: str = ""
    place: str = ""
    alike: str = ""


@dataclass(frozen=True)
class BlockFailure:
    """A block that a worker could not do for a reason that lies outside its images.

    Attributes:
        worker, place: as in `BlockReport`.
        error: what to raise, when this ends the run.
        key: the image at hand; empty where there was none.
    """

    worker: str
    error: Exception
    blame: Blame = Blame.DISK
    place: str = ""
    key: str = ""


class NotShared(OSError):
    """A worker that does not see the store."""


class Clock:
    """Adds up wall time by stage and by image."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.image_seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str, key: str = "") -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.seconds[stage] += seconds
            if key:
                self.image_seconds[key] += seconds
