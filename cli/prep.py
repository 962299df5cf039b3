"""samdeblur-prep: from a dataset to a mask store."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from samdeblur.cli.messages import QUARANTINED, progress_bar, run_command
from samdeblur.cli.stores import COMMANDS
from samdeblur.cli.weights import weights
from samdeblur.pipeline import PrepSettings, StoreOptions, Summary, Weights, open_source, prepare, status
from samdeblur.pipeline.fast import Speed
from samdeblur.pipeline.masks import SAM_SETTINGS
from samdeblur.pipeline.segment import BUNDLED_SETTINGS
from samdeblur.storage.info import stored_bytes


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
def cli() -> None:
    """Prepare deblurring datasets: pre-deblur, segment, and store the masks.

    Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 finished with quarantined images. --debug shows tracebacks.
    """


def sam_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per setting of SamAutomaticMaskGenerator."""
    for name, default in reversed(SAM_SETTINGS.items()):
        flag = f"--{name.replace('_', '-')}"
        if name == "point_grids":
            help_text = "SAM: JSON file with a list of [x, y] points in 0..1 per crop layer, instead of a regular grid."
            option = click.option(flag, type=click.Path(), help=help_text)
        else:
            option = click.option(flag, type=type(default), help=f"SAM: {name}, default {_default(name, default)}.")
        command = option(command)
    return command


def _default(name: str, default: Any) -> str:
    return f"{default}, bundled {BUNDLED_SETTINGS[name]}" if name in BUNDLED_SETTINGS else str(default)


@cli.command()
@click.argument("source")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--split", required=True, help="Split to prepare: train, test, ... (a folder of the native layouts).")
@click.option("--layout", default="auto", show_default=True, help="auto, pairs, gopro, sample or worlds.")
@click.option("--dataset", help="Name written into the store; by default the layout's or the folder's.")
@click.option("--skip-unpaired", is_flag=True, help="Leave out images without a counterpart.")
@click.option("--predeblur", default="auto", show_default=True, metavar="auto|none|bundled|NAME|PATH",
              help="NAFNet that deblurs before segmenting: a checkpoint, a run folder, or fetched weights. auto "
                   "does as the paper: bundled for splits whose name starts with train, none for others.")  # fmt: skip
@click.option("--segmenter", type=click.Choice(["sam", "superpixels", "true-masks"]), default="sam", show_default=True,
              help="superpixels need no weights; true-masks takes those that worlds know.")  # fmt: skip
@click.option("--sam", metavar="bundled|NAME|PATH", help="Segment Anything weights: a file, or fetched ones by name, "
              "such as sam_vit_h.  [default: bundled]")  # fmt: skip
@click.option("--channel-order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True,
              help="SAM: order of the channels; the released SAM-Deblur masks came from bgr.")  # fmt: skip
@click.option("--precision", type=click.Choice(["float32", "bf16", "fp16"]), default="float32", show_default=True,
              help="SAM: of the network; less than float32 changes masks a little.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="SAM: the image encoder through torch.compile; not exact.")
@click.option("--sdpa", is_flag=True, help="SAM: PyTorch's fused attention; not exact.")
@click.option("--encoder-batch", type=click.IntRange(1), default=1, show_default=True,
              help="SAM: images per call of the image encoder; more than one is not exact.")  # fmt: skip
@click.option("--images/--no-images", default=True, show_default=True, help="Store the pictures beside the masks.")
@click.option("--block-size", type=click.IntRange(1, 4096), help="Images per block, the unit of work.  [default: 8]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per GPU, else one per core]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@sam_options
def run(
    source: str,
    store: Path,
    split: str,
    layout: str,
    dataset: str | None,
    skip_unpaired: bool,
    predeblur: str,
    segmenter: str,
    sam: str | None,
    channel_order: Any,
    precision: Any,
    compiled: bool,
    sdpa: bool,
    encoder_batch: int,
    images: bool,
    block_size: int | None,
    workers: int | None,
    device: str,
    **sam_settings: Any,
) -> int:
    """Prepare SOURCE into STORE.

    SOURCE is a folder of pairs, a GoPro folder, `sample` (photographs this package blurs), or procedural scenes:
    `worlds`, `worlds:COUNT` or `worlds:COUNT:SIZE`.

    Run the same command again to finish a job that was interrupted.
    """
    if predeblur == "auto":
        predeblur = "bundled" if split.startswith("train") and segmenter != "true-masks" else "none"
    if segmenter == "true-masks" and predeblur != "none":
        raise click.UsageError("--predeblur needs a segmenter; true masks are not found in the pictures")
    if segmenter != "sam":
        options = {"sam": sam, **sam_settings, "compile": compiled or None, "sdpa": sdpa or None}
        options["precision"] = precision if precision != "float32" else None
        options["encoder_batch"] = encoder_batch if encoder_batch > 1 else None
        given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
        if given:
            raise click.UsageError(f"{given[0]} needs --segmenter sam")
    settings = PrepSettings(
        predeblur=None if predeblur == "none" else Weights.of_network(predeblur),
        sam=Weights.of_sam(sam or "bundled") if segmenter == "sam" else None,
        true_masks=segmenter == "true-masks",
        channel_order=channel_order,
        sam_settings=chosen_sam_settings(sam_settings, (sam or "bundled") == "bundled"),
        speed=Speed(precision, compiled, sdpa, encoder_batch),
        device=device,
    )
    pairs = open_source(source, split, layout, dataset, skip_unpaired)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = len(pairs.keys) - status(store).pending if store.exists() else 0
    name = f"{pairs.dataset} {split}"
    with progress_bar(total=len(pairs.keys), initial=before, unit="img", desc=name) as bar:

        def progress(n_images: int, quarantined: int) -> None:
            bar.update(n_images)
            if quarantined:
                bar.write(f"{quarantined} quarantined")

        summary = prepare(pairs, store, settings, StoreOptions(images, block_size), workers, progress)
    report(summary)
    return report_status(store)


def chosen_sam_settings(options: dict[str, Any], bundled: bool) -> dict[str, Any]:
    """The settings given on the command line, over those that suit the bundled model. Raises UsageError."""
    chosen = {name: value for name, value in options.items() if value is not None}
    if "point_grids" in chosen:
        if "points_per_side" in chosen:
            raise click.UsageError("give --points-per-side or --point-grids, not both")
        try:
            chosen["point_grids"] = json.loads(Path(chosen["point_grids"]).read_text())
            grids = [np.asarray(grid, float) for grid in chosen["point_grids"]]
            if not grids or any(grid.ndim != 2 or grid.shape[1] != 2 for grid in grids):
                raise ValueError("not a list of lists of [x, y]")
        except (OSError, ValueError, TypeError) as error:
            raise click.UsageError(f"--point-grids {options['point_grids']}: {error}") from error
        chosen["points_per_side"] = None
    return {**BUNDLED_SETTINGS, **chosen} if bundled else chosen


def report(summary: Summary) -> None:
    """Print what a run did."""
    done_before = f", {summary.already_done} were done before" if summary.already_done else ""
    rate = summary.images / summary.seconds if summary.seconds else 0.0
    click.echo(
        f"{summary.images} images in {summary.seconds:.1f} s ({rate:.2f} images/s, {summary.workers} workers)"
        f"{done_before}"
    )
    total = sum(summary.seconds_by_stage.values())
    if total:
        shares = ", ".join(f"{name} {100 * value / total:.0f}%" for name, value in summary.seconds_by_stage.items())
        click.echo(f"worker time: {shares}")


@cli.command("status")
@click.argument("store")
def status_command(store: str) -> int:
    """Say where STORE stands: images done, pending, quarantined and why, and its recipe."""
    header = status(store).store.header
    click.echo(f"dataset {header.dataset}, split {header.split}, recipe {header.fingerprint[:12]}")
    click.echo(json.dumps(header.recipe, indent=1))
    return report_status(store)


def report_status(path: str | Path) -> int:
    """Print the state of a store; returns the exit code that goes with it."""
    found = status(path)
    store = found.store
    stored = stored_bytes(store)
    size = f"{stored['all'] / 1e6:.1f} MB, " if stored else ""
    masks, atoms, _ = store.counts[store.states == 1].mean(axis=0) if found.done else (0, 0, 0)
    click.echo(
        f"{path}: {found.done} of {len(store)} images done, {found.pending} pending, {len(found.quarantined)} "
        f"quarantined; {size}{masks:.0f} masks in {atoms:.0f} atoms per image"
    )
    for key, reason in found.quarantined.items():
        click.echo(f"  quarantined {key}: {reason}")
    if found.pending:
        click.echo("run the same samdeblur-prep run command again to finish")
    return QUARANTINED if found.quarantined else 0


for command in (*COMMANDS, weights):
    cli.add_command(command)


def main() -> None:
    run_command(cli, "; what was committed is safe, run the same command again to finish")


if __name__ == "__main__":
    main()
