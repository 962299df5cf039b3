"""samdeblur-eval restore: people's own images, one or many, under their own names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from samdeblur.cli.messages import FAILED, QUARANTINED, harmless, progress_bar
from samdeblur.cli.support.choices import COMPARE_PAGE, RESULT_FORMATS
from samdeblur.cli.support.commands import Command
from samdeblur.cli.support.inference import (
    inference_of,
    inference_options,
    refuse_tiles,
    refuse_unused,
    tlc_of,
    weights_option,
)
from samdeblur.cli.support.paths import FOLDER, PLACE
from samdeblur.cli.support.segmenting import MaskOptions, Segmenter, mask_options
from samdeblur.storage.listing import files_in, is_image
from samdeblur.storage.plurals import counted

if TYPE_CHECKING:
    from samdeblur.evaluation.restore_files import Input, Named


@click.command(cls=Command)
@click.argument("network", metavar="MODEL", type=PLACE)
@click.argument("places", metavar="IMAGE|FOLDER...", nargs=-1, required=True, type=PLACE)
@click.option("--out", required=True, type=FOLDER, help="Folder of the results.")
@click.option("--format", "form", type=click.Choice(RESULT_FORMATS), default="png", show_default=True,
              help="File format of the results; png keeps 16 bits.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="Quality of jpg and webp.")
@click.option("--compare", is_flag=True, help=f"Write OUT/{COMPARE_PAGE}, a before-and-after slider for each image.")
@weights_option
@mask_options
@inference_options
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def restore(network: str, places: tuple[str, ...], out: Path, **options: Any) -> int:
    """Restore images with MODEL: bundled, the folder of a run, or a checkpoint.

    OUT/photo.png for each, folders below FOLDER kept; upright, with its colour profile and EXIF. Large images are
    restored in tiles if memory is short.

    A network that uses masks gets those of --sam, by default the bundled model, or of another --segmenter. Run the
    same command again to continue; finished results stay.
    """

    from samdeblur.evaluation.restore import Restorer
    from samdeblur.evaluation.restore_files import Way, restore_images
    from samdeblur.models import load_network, pick_device
    from samdeblur.models.checkpoints.loading import checkpoint_digest
    from samdeblur.storage import folders
    from samdeblur.train.state import run_weights, trained

    inference = inference_of(options)
    folders.check_claim(out, folders.RESTORED)
    inputs = find_images(places)
    path = run_weights(Path(network), options["weights"])
    device = pick_device(options["device"])
    model = load_network(path).to(device)
    inference = replace(inference, tlc=tlc_of(options, model, False))
    refuse_tiles(model, inference)
    refuse_unused(options, inference.tlc)
    segmenter = Segmenter(MaskOptions.of(options), device) if model.prior is not None else None
    folders.claim(out, folders.RESTORED)
    weights = trained(path, model.provenance)
    if weights is not None and (not weights.step or not weights.finished):
        click.echo(f"note: the weights are of {weights}", err=True)
    if segmenter is not None and weights is not None and weights.segmenter not in ("", segmenter.kind):
        click.echo(
            f"note: the masks are of {segmenter.kind}; the network was trained with masks of {weights.segmenter} "
            "(--segmenter, --sam and --refine find others)",
            err=True,
        )
    recipe = segmenter.recipe if segmenter is not None else ""
    way = Way(checkpoint_digest(path), inference, recipe, options["form"], options["quality"])
    outcome = restore_images(
        inputs,
        out,
        way,
        lambda: Restorer(model, inference, _say),
        (lambda blurred: segmenter(blurred)[0]) if segmenter is not None else None,
        options["compare"],
        _say,
        _bar,
    )
    for source, found in outcome.flagged.items():
        _say(f"{source}: looks collapsed ({found})")
    there = f", {outcome.kept} of them there before" if outcome.kept else ""
    count = len(outcome.written)
    click.echo(f"{out}: {counted(count, 'image')} restored{there}")
    if options["compare"] and outcome.written:
        click.echo(f"before and after: {out / COMPARE_PAGE}")
    if outcome.left_out:
        _say(f"{len(outcome.left_out)} could not be restored; the lines above say why")
    return 0 if not outcome.left_out else QUARANTINED if outcome.written else FAILED


def find_images(places: Sequence[str]) -> list[Input]:
    """The images at some places, with the names of their results; each file once. Raises UsageError."""

    from samdeblur.evaluation.restore_files import Input

    found: dict[str, Input] = {}
    several = sum(os.path.isdir(place) for place in places) > 1
    for place in places:
        path = Path(place)
        if not path.exists():
            raise click.UsageError(f"{place}: no such image or folder")
        for name, file in sorted(_files(path)) if path.is_dir() else [(path.name, path)]:
            parts = (Path(os.path.abspath(path)).name, name) if several and path.is_dir() else (name,)
            found.setdefault(os.path.realpath(file), Input(file, PurePosixPath(*parts)))
    return list(found.values())


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Images below a folder, but for those that commands of this package wrote. Raises UsageError for none."""

    from samdeblur.storage import folders

    kind = folders.kind_of(folder)
    if kind is not None:
        swapped = "; swapped? It is samdeblur-eval restore MODEL IMAGE|FOLDER..." if kind == folders.RUN else ""
        raise click.UsageError(f"{folder}: holds {folders.WORDS[kind]}, not images to restore{swapped}")
    ours: dict[Path, bool] = {folder: False}

    def is_ours(place: Path) -> bool:
        if place not in ours:
            ours[place] = is_ours(place.parent) or folders.kind_of(place) is not None
        return ours[place]

    every = [(name, path) for name, path in files_in(folder) if is_image(path.name)]
    found = [(name, path) for name, path in every if not is_ours(path.parent)]
    if len(found) < len(every):
        places = sorted({str(place) for place in ours if ours[place] and not ours[place.parent]})
        _say(f"note: {', '.join(places)}: skipped, as it holds results of this package")
    if not found:
        raise click.UsageError(f"{folder}: no images there")
    return found


def _bar(inputs: Sequence[Named]) -> Iterable[Named]:
    bar = progress_bar(inputs, unit="image", desc="restored")
    for one, name in bar:
        bar.set_postfix_str(harmless(one.source.name), refresh=False)
        yield one, name


def _say(line: str) -> None:
    click.echo(harmless(line), err=True)
