"""What is said of a run before it, after it, and of a store at any time."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from samdeblur.cli.messages import QUARANTINED
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.pipeline import Plan, Summary

NAMED = 8  # images named in a list that may be long


def report(summary: Summary) -> None:
    """Print what a run did."""
    if not (summary.images or summary.failures or summary.left_out or summary.died):
        click.echo(f"nothing to do: {counted(summary.already_done, 'image')} done before")
        return
    done_before = f", {summary.already_done:,} done before" if summary.already_done else ""
    click.echo(
        f"{counted(summary.images, 'image')} in {summary.seconds:.1f} s ({summary.rate:.2f} images/s, "
        f"{counted(summary.workers, 'worker')}){done_before}"
    )
    total = sum(summary.seconds_by_stage.values())
    if total:
        rates = ", ".join(
            f"{name} {100 * seconds / total:.0f}% ({summary.images / seconds:.3g} images/s)"
            for name, seconds in summary.seconds_by_stage.items()
            if seconds > 0.01 * total
        )
        click.echo(f"worker time: {rates}; networks busy {100 * summary.device_share:.0f}% of it")
        click.echo("slowest: " + ", ".join(f"{key} {seconds:.1f} s" for seconds, key in summary.slowest))
    if summary.splits:
        times = counted(summary.splits, "time")
        click.echo(f"GPU memory ran out {times} at masks of full size; they were computed in smaller parts")
    for failure, blocks in summary.failures.items():
        click.echo(f"failed and retried, {counted(blocks, 'block')}: {failure}")
    for place, reason in summary.left_out.items():
        click.echo(f"left out: {place}, where {reason}")
    if summary.died:
        click.echo(f"workers died at {counted(summary.died, 'block')}, retried image by image")
    if len(summary.environments) > 1:
        click.echo("warning: workers differ, and so may their masks in the last bits:")
        for environment, blocks in summary.environments.items():
            click.echo(f"  {counted(blocks, 'block')}: {environment}")


def report_plan(name: str, path: Path, plan: Plan, workers: int, as_json: bool) -> None:
    """Print what a run would do."""
    seconds = None
    if plan.seconds_per_image is not None:
        seconds = plan.seconds_per_image * plan.pending_images / workers
    expected = plan.bytes_per_image * plan.pending_images
    if as_json:
        click.echo(
            json.dumps(
                {"event": "plan", "name": name, "store": str(path)}
                | asdict(plan)
                | {"bytes_expected": round(expected), "seconds_expected": seconds, "workers": workers}
            )
        )
        return
    click.echo(f"{name} -> {path}")
    to_do = "nothing to do"
    if plan.pending_images:
        to_do = f"to do: {counted(plan.pending_images, 'image')} in {counted(plan.pending_blocks, 'block')}"
    click.echo(
        f"  {counted(plan.images, 'image')} in {counted(plan.blocks, 'block')}; {to_do}; "
        f"quarantined: {plan.quarantined}"
    )
    how = "measured in this store" if plan.measured else "a rough estimate; measured once a block is done"
    click.echo(f"  bytes: about {expected / 1e6:.1f} MB more ({how})")
    if seconds is None:
        click.echo("  time: not known before a block is done")
    else:
        click.echo(
            f"  time: about {tqdm.format_interval(seconds)} with {counted(workers, 'worker')} "
            f"({plan.seconds_per_image:.2f} s per image and worker, measured)"
        )
    for key, reason in list(plan.unreadable.items())[:NAMED]:
        click.echo(f"  cannot be opened, and would be quarantined: {key}: {reason}")
    if len(plan.unreadable) > NAMED:
        click.echo(f"  and {len(plan.unreadable) - NAMED} more that cannot be opened")


def report_status(path: str | Path) -> int:
    """Print the state of a store; returns the exit code that goes with it."""

    from samdeblur.pipeline import status
    from samdeblur.storage.sharing.info import stored_bytes

    found = status(path)
    store = found.store
    stored = stored_bytes(store)
    size = f"{stored['all'] / 1e6:.1f} MB, " if stored else ""
    masks, atoms, _ = store.counts[store.states == 1].mean(axis=0) if found.done else (0, 0, 0)
    click.echo(
        f"{store.path}: {found.done} of {counted(len(store), 'image')} done, {found.pending} pending, "
        f"{len(found.quarantined)} quarantined; {size}{counted(round(masks), 'mask')} in "
        f"{counted(round(atoms), 'atom')} per image"
    )
    if found.done and not masks:
        click.echo(f"note: no masks were found in {counted(found.done, 'image')}; try lower thresholds or more points")
    for key, reason in found.quarantined.items():
        click.echo(f"  quarantined {key}: {reason}")
    if found.quarantined:
        click.echo("repair the files, then run the same command with --retry-quarantined")
    if found.job:
        ago = max(0.0, time.time() - found.job["renewed"])
        click.echo(f"job {found.job['pid']} on {found.job['host']} is at work (seen {ago:.0f} s ago)")
    elif found.pending:
        click.echo("run the same samdeblur-prep run command again to finish")
    return QUARANTINED if found.quarantined else 0
