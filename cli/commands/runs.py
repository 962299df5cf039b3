"""samdeblur-train status and plot: runs as their folders have them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from samdeblur.cli.messages import harmless
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.paths import FILE, PLACE

HELP = {"help_option_names": ["-h", "--help"]}


@click.command(cls=Command, context_settings=HELP)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per run, a line each.")
def status(runs: tuple[str, ...], as_json: bool) -> None:
    """Say where each RUN stands: its step, best validation, speed, time left, host, and what it last failed with.

    To train on a store named status, write ./status.
    """

    from samdeblur.train.standing import standing

    for number, found in enumerate([standing(Path(run)) for run in runs]):
        if as_json:
            click.echo(json.dumps({**asdict(found), "folder": str(found.folder), "state": found.state}))
            continue
        if number:
            click.echo()
        for line in found.lines():
            click.echo(harmless(line))


@click.command(cls=Command, context_settings=HELP)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=PLACE)
@click.option("--out", default="curves.png", show_default=True, type=FILE, help="PNG file to write.")
def plot(runs: tuple[str, ...], out: Path) -> None:
    """Draw the curves of every RUN, training loss and validation PSNR, in one image."""

    from samdeblur.storage.files import write_durably
    from samdeblur.train.config import TrainConfig, read_config
    from samdeblur.train.settings import ConfigError
    from samdeblur.train.standing import CONFIG, draw_runs, read_log, standing

    paths = [Path(os.path.normpath(run)) for run in runs]
    found = {path: standing(path) for path in paths}
    logs = {path: read_log(path) for path in paths}
    if empty := [path for path in paths if not logs[path]]:
        raise ConfigError(f"{empty[0]}: nothing was logged yet")
    common = os.path.commonpath([path.absolute() for path in paths]) if len(found) > 1 else ""
    names = {path: os.path.relpath(path.absolute(), common) if common else path.name for path in paths}
    losses = {str(TrainConfig.of(read_config(str(path / CONFIG))).loss) for path in paths}
    label = "training loss (dB)" if losses == {"psnr"} else f"training loss ({', '.join(sorted(losses))})"
    write_durably(out, draw_runs({names[path]: rows for path, rows in logs.items()}, label))
    click.echo(f"{out}: curves of {len(found)} run{'' if len(found) == 1 else 's'}")
