"""The study of the prior: every variant, seed by seed, on families of images it was and was not trained on.

\b
python benchmarks/study --size small --out study --plan     # what there is to do
python benchmarks/study --size small --out study            # do it; run again, it goes on where it stopped
python benchmarks/study --size small --out study --summary  # of what is there so far

docs/study.md has what was found.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parent))

from axes import write_axes
from figures import draw_curves, draw_differences
from gallery import draw_gallery
from plan import SIZES, Size, best_masks, cells, crossed_sets, is_crossed, stores, stores_of, variants
from quality import mask_quality
from rivals import write_priors
from summary import BASELINE, POOLED, pooled, read_scores, summarise, write_summary
from work import end_with_parent, evaluate_in_practice, prepare, train_and_evaluate

from samdeblur.evaluation.results import RESULTS


@click.command(help=__doc__)
@click.option("--size", "name", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="study", show_default=True)
@click.option("--processes", default=lambda: 1 if torch.cuda.is_available() else os.cpu_count(), type=click.IntRange(1),
              help="Trainings at a time.  [default: one on a GPU, else one per core]")  # fmt: skip
@click.option("--row", "names", multiple=True, help="These variants, and none. May be repeated; all by default.")
@click.option("--seeds", type=click.IntRange(1), help="At most so many of each row.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path),
    help="Test networks with true masks on those of this Segment Anything model too; with --size priors.",
)
@click.option(
    "--pairs",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="Test networks on these real pairs too: a folder as samdeblur-prep run takes it.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what there is to do and end.")
@click.option("--summary", "only_summary", is_flag=True, help="Sum up what is there and end.")
def main(
    name: str,
    out: Path,
    processes: int,
    names: tuple[str, ...],
    seeds: int | None,
    checkpoints: tuple[Path, ...],
    pairs: Path | None,
    only_plan: bool,
    only_summary: bool,
) -> None:
    size = replace(SIZES[name], checkpoints=checkpoints, pairs=pairs)
    if checkpoints and not size.priors:
        raise click.UsageError("--checkpoint goes with --size priors")
    if len(size.of_checkpoints) < len(checkpoints):
        raise click.UsageError("--checkpoint: two files of one name; the tables could not tell them apart, rename one")
    if only_summary:
        click.echo(report(size, out))
        return
    known = [variant.name for variant in variants(size)]
    if unknown := set(names) - set(known):
        raise click.UsageError(f"no row {unknown.pop()!r}, choose from {'; '.join(known)}")
    wanted = [cell for cell in cells(size) if not names or cell.variant.name in (BASELINE, *names)]
    wanted = [cell for cell in wanted if seeds is None or cell.seed < seeds]
    of_oracles = [cell for cell in wanted if is_crossed(cell.variant, size)]
    needed = {store for cell in wanted for store in stores_of(cell.variant, size)}
    needed |= set(crossed_sets(size) if of_oracles else [])
    to_prepare = [store for store in stores(size) if store in needed]
    click.echo(f"{len(to_prepare)} stores: {', '.join(store.place for store in to_prepare)}")
    click.echo(f"{len(wanted)} trainings, up to {size.seeds} seeds of:")
    for variant in dict.fromkeys(cell.variant.name for cell in wanted):
        click.echo(f"  {variant}")
    if only_plan:
        return
    out.mkdir(parents=True, exist_ok=True)
    do_all("stores", prepare, [(store, size, out) for store in to_prepare], processes)
    for what, do, some in (("results", train_and_evaluate, wanted), ("in-practice", evaluate_in_practice, of_oracles)):
        left = [cell for cell in some if not (out / what / cell.place / RESULTS).exists()]
        click.echo(f"{what}: {len(some) - len(left)} of {len(some)} done before")
        do_all(what, do, [(cell, size, out) for cell in left], processes)
    click.echo(report(size, out))


def report(size: Size, out: Path) -> str:
    """Tables, figures and images of what is there; gives the tables."""
    found = read_scores(size, out)
    if BASELINE not in found:
        raise click.ClickException(f"{out}: no training of {BASELINE} is done")
    if size.priors:
        return write_priors(size, out, found, read_scores(size, out, "in-practice"))
    if size.axes:
        return write_axes(size, out, found, read_scores(size, out, "in-practice"))
    columns = summarise(pooled(found, POOLED))
    draw_differences(size, columns, out / "differences.png")
    draw_curves(size, out, out / "curves.png")
    over = {row.variant: row.over["psnr"].mean for row in columns if row.over}
    shown = {f"map-dropout, {best_masks(size.masks)}", *sorted(over, key=over.__getitem__)[-1:]}
    for variant in variants(size):
        if variant.name in shown & set(found):
            draw_gallery(size, out, found, variant, out / f"pictures-{variant.place}.jpg")
    return write_summary(size, out, found, read_scores(size, out, "in-practice"), mask_quality(size, out))


def do_all(what: str, do: Callable[..., Any], pieces: Sequence[tuple[Any, ...]], processes: int) -> None:
    """Do every piece, some at a time, and say how far it is. One that fails ends it when those begun are done."""
    start = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, context, end_with_parent) as pool:
        waiting = [pool.submit(do, *piece) for piece in pieces]
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                left = (time.monotonic() - start) / done * (len(waiting) - done)
                click.echo(f"{what}: {done} of {len(waiting)}, about {left / 60:.0f} min left")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
