"""What becomes of blocks that were not done, and of the places that cannot do them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from samdeblur.pipeline.job.blame import Blame, DeviceFailed, Unusable
from samdeblur.pipeline.job.blocks import BlockFailure, BlockReport, BlockTask
from samdeblur.pipeline.job.cluster import Feed, Runner, WorkerKilled
from samdeblur.pipeline.job.summary import Summary
from samdeblur.pipeline.job.worker import working_on

ATTEMPTS = 3  # at a block, before what goes wrong with it ends the run
DEVICE_ATTEMPTS = 3  # processes that fail on a device, with no block done in between, before it is left out
IN_A_ROW = 16  # images that fail alike in one place, with none done in between, before it is not put down to them


@dataclass
class _Place:
    """Where blocks are done: a host and its GPU, whatever process is there.

    Attributes:
        failed: processes whose device failed since the last block that was done, or blocks where none ever was.
        worked: whether any block was done.
        suspects: (block, key) at which it failed in careful attempts since the last block that was done.
        held: blocks of which all images failed alike, in a row.
    """

    worked: bool = False
    failed: set[str] = field(default_factory=set)
    suspects: set[tuple[int, str]] = field(default_factory=set)
    held: list[tuple[BlockTask, BlockReport]] = field(default_factory=list)


class Retries:
    """Judges what comes back from workers. Every call raises what ends the run."""

    def __init__(self, runner: Runner, feed: Feed[BlockTask], summary: Summary) -> None:
        self._runner, self._feed, self._summary = runner, feed, summary
        self._places: defaultdict[str, _Place] = defaultdict(_Place)
        self._strikes: set[tuple[int, str]] = set()  # where a device failed that did other blocks after it
        self._renewed: set[str] = set()

    def done(self, task: BlockTask, report: BlockReport) -> list[BlockReport]:
        """The blocks to be committed now that a worker reports one.

        A block of images that failed alike waits for the next one that is done in its place: many in a row are the
        fault of the place, and are done again elsewhere.
        """
        here = self._places[report.place]
        if not report.alike:
            self._strikes |= here.suspects
            self._places[report.place] = _Place(worked=True)
            return [*(earlier for _, earlier in here.held), report]
        if here.held and here.held[-1][1].alike != report.alike:
            released, here.held = here.held, []
        else:
            released = []
        here.held.append((task, report))
        count = sum(len(one.staged.outcomes) for _, one in here.held)
        if count >= IN_A_ROW:
            held, here.held = here.held, []
            reason = held[-1][1].staged.outcomes[-1].error
            error = Unusable(
                f"{count} images in a row failed in the same way, so the images are hardly the cause; they stay "
                f"pending. The last: {reason}"
            )
            for again, one in held:
                shutil.rmtree(one.staged.staging, ignore_errors=True)
                self._feed.put_back(again)
            self._leave_out(report.place, report.worker, error)
        return [earlier for _, earlier in released]

    def rest(self) -> list[BlockReport]:
        """Blocks still held back at the end of a run."""
        return [report for here in self._places.values() for _, report in here.held]

    def failed(self, task: BlockTask, failure: BlockFailure) -> None:
        """Put a block back that a worker could not do."""
        self._summary.add_failure(failure)
        if failure.blame is Blame.DEVICE:
            self._device_failed(task, failure)
            return
        here = self._places[failure.place]
        if failure.blame is Blame.ENVIRONMENT and self._runner.distributed and not here.worked:
            here.failed.add(f"{failure.worker} {task.block}")
            self._feed.put_back(task, (failure.worker,), after=1)
            if len(here.failed) >= ATTEMPTS:
                self._leave_out(failure.place, failure.worker, failure.error)
            return
        again = replace(task, attempt=task.attempt + 1, failed_on=(*task.failed_on, failure.worker))
        if failure.blame is Blame.MEMORY:
            if again.attempt >= ATTEMPTS and task.careful and failure.key:
                reason = f"memory ran out at this image {ATTEMPTS} times; give workers more (--memory-limit)"
                again = _without(task, failure.key, reason)
            elif again.attempt >= ATTEMPTS:
                raise failure.error
            again = replace(again, careful=True)
        elif again.attempt >= ATTEMPTS or not self._runner.distributed:
            raise failure.error
        self._feed.put_back(again, again.failed_on)

    def died(self, task: BlockTask, failure: WorkerKilled) -> None:
        """Put a block back whose workers died: it is done with care, and when they die again, and always at the same
        image, without this image.
        """
        self._summary.died += 1
        again = replace(task, attempt=task.attempt + 1)
        at = working_on(task.staging) if task.careful else []
        if len(at) > 1 and len({*at}) == 1 and at[0] not in task.skip:
            again = _without(
                task,
                at[0],
                f"{len(at)} workers died at this image, usually for lack of memory; give them more (--memory-limit)",
            )
        elif again.attempt >= ATTEMPTS:
            keys = list(task.source.keys)
            raise WorkerKilled(
                f"block {task.block} ({keys[0]} to {keys[-1]}): its workers died {again.attempt} times, usually "
                f"for lack of memory; give them more (--memory-limit), or start fewer (--workers). {failure}"
            )
        for attempt in Path(task.staging).parent.glob(f"{Path(task.staging).name}-*"):
            shutil.rmtree(attempt, ignore_errors=True)
        self._feed.put_back(replace(again, careful=True), again.failed_on)

    def _device_failed(self, task: BlockTask, failure: BlockFailure) -> None:
        """Other blocks first: a device that does one is well, and what fails again on such a device is the image; so is
        what fails on two devices that have worked.

        The process is replaced, since most errors of a device stay with the process that met them.
        """
        if not self._runner.distributed:
            raise failure.error
        here, suspect = self._places[failure.place], (task.block, failure.key)
        again = replace(task, careful=True)
        here.failed.add(failure.worker)
        if task.careful and failure.key:
            here.suspects.add(suspect)
            struck = [place for place in self._places.values() if place.worked and suspect in place.suspects]
            if suspect in self._strikes or len(struck) > 1:
                again = _without(task, failure.key, f"the device failed at this image again and again: {failure.error}")
                for place in struck:
                    place.failed.clear()
        self._feed.put_back(again, (failure.worker,), after=self._runner.workers)
        if len(here.failed) >= DEVICE_ATTEMPTS:
            self._leave_out(failure.place, failure.worker, failure.error)
        elif failure.worker not in self._renewed:
            self._renewed.add(failure.worker)
            self._runner.renew(failure.worker)

    def _leave_out(self, place: str, worker: str, error: Exception) -> None:
        """Do without a place from now on."""
        if not self._runner.distributed:
            raise error
        self._summary.left_out[place] = str(error)
        self._runner.leave_out(worker)
        if not self._runner.workers:
            left = "; ".join(f"{name}: {why}" for name, why in self._summary.left_out.items())
            kind = DeviceFailed if isinstance(error, DeviceFailed) else Unusable
            raise kind(f"no worker is left. {left}")


def _without(task: BlockTask, key: str, reason: str) -> BlockTask:
    """The block with an image quarantined untried."""
    return replace(task, attempt=0, careful=True, skip={**task.skip, key: reason})
