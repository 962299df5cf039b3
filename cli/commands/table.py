"""samdeblur-eval table: several evaluations side by side, beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from samdeblur.cli.support.choices import RESAMPLES, TABLES
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import FOLDER, READ
from samdeblur.storage.files import write_durably


@click.command(cls=Command)
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True, type=READ)
@click.option("--format", "form", type=click.Choice(list(TABLES)), default="markdown", show_default=True,
              help="Format of what is printed.")  # fmt: skip
@click.option("--out", type=FOLDER,
              help=f"Write {', '.join(TABLES.values())} and report.html there.")  # fmt: skip
@click.option("--published/--no-published", default=None,
              help="Rows of the paper's Table 1. [default: where they compare]")  # fmt: skip
@click.option("--ssim", type=click.Choice(["nafnet", "wang"]), default="nafnet", show_default=True,
              help="Convention of SSIM. Published values are of nafnet, and are left out beside wang.")  # fmt: skip
@click.option("--baseline", metavar="METHOD", help="Row that others are compared with. [default: none, or the first]")
@click.option("--mean-runs", is_flag=True, help="Make the runs of a method one row: their mean and standard deviation.")
@click.option("--resamples", type=click.IntRange(100, 1_000_000), default=RESAMPLES, show_default=True,
              help="Bootstrap resamples of the images.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the resamples.")
@click.option("--curves", multiple=True, type=READ, metavar="RUN",
              help="Folder of a training run whose curves the report shows. May be repeated.")  # fmt: skip
def table(
    results: tuple[Path, ...],
    form: str,
    out: Path | None,
    published: bool | None,
    ssim: Literal["nafnet", "wang"],
    baseline: str | None,
    mean_runs: bool,
    resamples: int,
    seed: int,
    curves: tuple[Path, ...],
) -> None:
    """Compare RESULTS (folders written by `run`) in the layout of the paper's Table 1.

    Results of one network on several sets are one row. Every number has a 95% interval over images; differences are
    from the method `none` and from the published rows. Results of other conventions, or of other images under the
    same name, are refused.
    """

    from samdeblur.evaluation.report.write import write_comparison
    from samdeblur.evaluation.results import RESULTS, read_results
    from samdeblur.evaluation.tables.comparison import Settings, compare
    from samdeblur.evaluation.tables.formats import FILES, FORMATS
    from samdeblur.evaluation.tables.text import tables_of
    from samdeblur.storage import folders
    from samdeblur.train.state import read_curves

    for path in results:
        if path.is_dir() and folders.kind_of(path) == folders.RUN:
            raise click.UsageError(f"{path}: a training run, not results; evaluate it first, with samdeblur-eval run")
    if out is not None:
        folders.check_claim(out, folders.TABLE)
    runs = [read_results(path) for path in results]
    files = [(path / RESULTS if path.is_dir() else path).resolve() for path in results]
    if twice := next((path for path, file in zip(results, files, strict=True) if files.count(file) > 1), None):
        raise click.UsageError(f"{twice}: given twice")
    places = [file.parent for file in files]
    figures = {f"training of {run.name}": read_curves(run) for run in curves}
    settings = Settings(ssim, published, resamples, seed, mean_runs, baseline)
    comparison = compare(runs, [str(path) for path in results], settings)
    click.echo(FORMATS[form](comparison).rstrip("\n"))
    if out is not None:
        folders.claim(out, folders.TABLE)
        for name, written in FORMATS.items():
            write_durably(out / FILES[name], written(comparison).encode(errors="replace"))
        path = write_comparison(out, runs, places, figures, tables_of(comparison))
        click.echo(f"report: {path}", err=True)
