"""samdeblur-prep: from a dataset to a mask store."""

from __future__ import annotations

import json

import click

from samdeblur.cli.commands.doctor import doctor
from samdeblur.cli.commands.quality import quality
from samdeblur.cli.commands.run import run
from samdeblur.cli.commands.stores import COMMANDS
from samdeblur.cli.commands.weights import weights
from samdeblur.cli.messages import run_command
from samdeblur.cli.support.commands import Command, Group
from samdeblur.cli.support.paths import PLACE
from samdeblur.cli.support.summary import report_status


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
def cli() -> None:
    """Prepare deblurring datasets: pre-deblur, segment, and store the masks.

    Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 finished with quarantined images. --debug shows tracebacks.
    """


@click.command("status", cls=Command)
@click.argument("store", type=PLACE)
def status_command(store: str) -> int:
    """Say where STORE stands: images done, pending, quarantined and why, its recipe, and whether a job is running."""

    from samdeblur.pipeline import status

    header = status(store).store.header
    click.echo(f"dataset {header.dataset}, split {header.split}, recipe {header.fingerprint[:12]}")
    click.echo(json.dumps(header.recipe, indent=1))
    return report_status(store)


for command in (run, status_command, *COMMANDS, quality, weights, doctor):
    cli.add_command(command)


def main() -> None:
    run_command(cli, "; what was committed is safe, run the same command again to finish")


if __name__ == "__main__":
    main()
