"""The commands of samdeblur-prep for public weights: which there are, and fetching them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samdeblur.cli.messages import FAILED, progress_bar
from samdeblur.cli.support.commands import Group
from samdeblur.cli.support.paths import READ
from samdeblur.storage.files import sha256_file

if TYPE_CHECKING:
    from samdeblur.models.checkpoints.public import Weight

ROW = "{:<24}{:<13}{:>11}  {:<12}{:<18}{}"

folder_option = click.option(
    "--folder", type=READ, help="Folder of the weights.  [default: $SAMDEBLUR_WEIGHTS or a cache folder]"
)


@click.group(cls=Group)
def weights() -> None:
    """List and fetch public weights, for --sam and --predeblur."""


@weights.command("list")
@folder_option
@click.option("--check", is_flag=True, help="Read the files and compare their SHA-256, not just their sizes.")
def list_command(folder: Path | None, check: bool) -> int:
    """Say which weights are known, and which of them are there. Exit code 1 if one is not what was published."""

    from samdeblur.models.checkpoints.public import BUNDLED_NETWORK, BUNDLED_SAM, WEIGHTS, weights_folder

    folder = folder or weights_folder()
    click.echo(ROW.format("name", "option", "size", "state", "licence", "path"))
    for option, path in (("--sam", BUNDLED_SAM), ("--predeblur", BUNDLED_NETWORK)):
        click.echo(ROW.format("bundled", option, _size(path.stat().st_size), "bundled", "Apache-2.0", path))
    wrong = False
    for weight in WEIGHTS.values():
        path = folder / weight.file
        state = _state(weight, path, check)
        wrong |= state.startswith("wrong")
        click.echo(ROW.format(weight.name, _option(weight), _size(weight.bytes), state, weight.licence, path))
    click.echo("")
    for weight in WEIGHTS.values():
        click.echo(f"{weight.name}: {weight.what}; {weight.page}")
    return FAILED if wrong else 0


@weights.command("fetch")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@folder_option
@click.option("--mirror", metavar="URL", help="Fetch from here instead: http://, https://, file:// or a folder.")
def fetch_command(names: tuple[str, ...], folder: Path | None, mirror: str | None) -> int:
    """Download weights by name and check their SHA-256. USER/NAME[@REVISION] is a model of the Hugging Face Hub.

    Run the same command again to go on with a download that was interrupted.
    """

    from samdeblur.models.checkpoints.hub import hub_folder, is_hub_name
    from samdeblur.models.checkpoints.public import WEIGHTS, fetch, weights_folder

    of_hub = [name for name in names if name not in WEIGHTS and is_hub_name(name)]
    for name in names:
        if name not in WEIGHTS and name not in of_hub:
            raise click.UsageError(f"{name}: no such weights; known are {', '.join(WEIGHTS)}, and USER/NAME of the Hub")
    if of_hub and (mirror or folder):
        raise click.UsageError(f"{of_hub[0]}: comes into the Hub's own cache; set HF_HOME and HF_ENDPOINT for others")
    for name in of_hub:
        path, revision = hub_folder(name, fetch=True)
        click.echo(f"{revision}: use it with --sam {shlex.quote(revision)}; it lies in {path}")
    for weight in (WEIGHTS[name] for name in names if name in WEIGHTS):
        with progress_bar(total=weight.bytes, unit="B", unit_scale=True, desc=weight.name) as bar:

            def progress(more: int) -> None:
                bar.update(more)

            path = fetch(weight, (folder or weights_folder()).absolute(), mirror, progress)
        click.echo(f"{weight.name}: use it with {_option(weight)} {shlex.quote(str(path))}")
    return 0


def _option(weight: Weight) -> str:
    return "--predeblur" if weight.name.startswith("nafnet") else "--sam"


def _size(n: int) -> str:
    return f"{n / 1e6:.1f} MB"


def _state(weight: Weight, path: Path, check: bool) -> str:
    if not path.exists():
        return "missing"
    if path.stat().st_size != weight.bytes:
        return "wrong size"
    if check:
        return "sound" if sha256_file(path).hex() == weight.sha256 else "wrong bytes"
    return "there"
