"""samdeblur-eval: scores, tables and reports."""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import yaml

from samdeblur.cli.images import images_options, with_all_images
from samdeblur.cli.messages import progress_bar, run_command
from samdeblur.models import Deblurrer, TileError, check_tiles, load_network, local_pooling, pick_device
from samdeblur.models.tiles import OVERLAP
from samdeblur.storage import MaskStore, StoreError, open_store
from samdeblur.storage.files import sha256_file
from samdeblur.train.compare import (
    as_markdown,
    comparison_report,
    comparison_tables,
    run_report,
    run_table,
    save_pictures,
    worst_first,
    write_report,
)
from samdeblur.train.evaluate import (
    Inference,
    Results,
    SetResult,
    read_results,
    score_images,
    summarise,
    write_results,
)
from samdeblur.train.state import CONFIG, read_curves, run_weights

TRAIN_SIZE = 256  # of the paper, for weights that do not say


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="samdeblur")
def cli() -> None:
    """Evaluate trained networks: PSNR, SSIM, mode collapse rate, tables, reports to look at.

    Exit codes: 0 done, 1 failed, 2 wrong usage. --debug shows tracebacks.
    """


@cli.command()
@click.argument("network", metavar="RUN")
@click.argument("stores", metavar="STORE...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the results.")
@images_options
@click.option("--weights", type=click.Choice(["best", "last", "initial"]), default="best", show_default=True)
@click.option("--with-step-0", is_flag=True, help="Also score the network as it was before training.")
@click.option("--pictures", type=click.IntRange(0), default=24, show_default=True,
              help="Images per set shown in the report, worst first.")  # fmt: skip
@click.option("--tile", type=click.IntRange(1), metavar="PIXELS",
              help="Cut larger images into tiles of this side, to save memory; masks are seen whole.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(0), metavar="PIXELS",
              help=f"Pixels that neighbouring tiles share. [default: {OVERLAP}]")  # fmt: skip
@click.option("--tlc", is_flag=True, help="Local means in place of means over the whole image (TLC).")
@click.option("--train-size", type=click.IntRange(1), metavar="PIXELS",
              help="Side of training crops, for --tlc. [default: what the weights say, else 256]")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def run(
    network: str,
    stores: tuple[str, ...],
    out: Path,
    images: tuple[str, ...],
    images_layout: str | None,
    weights: str,
    with_step_0: bool,
    pictures: int,
    tile: int | None,
    overlap: int | None,
    tlc: bool,
    train_size: int | None,
    device: str,
) -> None:
    """Score RUN (the folder of a run, or a checkpoint) on every STORE; writes results.json, .csv and report.html.

    Results in tiles or with TLC say so in results.json, and in tables beside the name of the network.
    """
    folder = Path(network)
    if overlap is not None and tile is None:
        raise click.UsageError("--overlap is for --tile")
    if train_size is not None and not tlc:
        raise click.UsageError("--train-size is for --tlc")
    path = run_weights(folder, weights)
    model = load_network(path).to(pick_device(device))
    inference = Inference(
        tile,
        (OVERLAP if overlap is None else overlap) if tile is not None else None,
        (train_size or model.train_size or TRAIN_SIZE) if tlc else None,
    )
    model = prepared(model, inference)
    initial = run_weights(folder, "initial") if with_step_0 else None
    before = prepared(load_network(initial).to(pick_device(device)), inference) if initial is not None else None
    opened = with_all_images([open_store(store) for store in stores], images, images_layout)
    for store in opened:
        store.require_images()
        if not store.ready_keys:
            raise StoreError(f"{store.path}: no image is ready; finish the preparation")
    sets = tuple(score_store(model, before, store, out, pictures, inference) for store in opened)
    results = Results(method_of(folder, model, inference), str(path), sha256_file(path).hex(), sets, inference)
    write_results(results, out)
    click.echo(as_markdown(run_table(results)))
    click.echo(f"report: {write_report(out, run_report(results, out))}")


def prepared(model: Deblurrer, inference: Inference) -> Deblurrer:
    """The network with local means if they are asked for; refuses tiles that do not suit it."""
    if inference.tile is not None and inference.overlap is not None:
        try:
            check_tiles(model, inference.tile, inference.overlap)
        except TileError as error:
            raise click.UsageError(f"--tile and --overlap: {error}") from error
    if inference.tlc is None:
        return model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = local_pooling(model, inference.tlc)
    for warning in caught:
        click.echo(f"--tlc: {warning.message}", err=True)
    return model


def score_store(
    model: Deblurrer, before: Deblurrer | None, store: MaskStore, out: Path, pictures: int, inference: Inference
) -> SetResult:
    """Score every image that is ready, and keep the pictures of the worst."""
    keys, header = store.ready_keys, store.header
    unready = len(store) - len(keys)
    if unready:
        click.echo(f"{store.path}: {unready} of {len(store)} images are not ready and are left out", err=True)
    name = f"{header.dataset} {header.split}"
    tiles = inference.tile, inference.overlap or 0
    bar = progress_bar(score_images(model, store, keys, *tiles), total=len(keys), unit="img", desc=name)
    scores = tuple(score for score, _ in bar)
    step_0 = summarise([score for score, _ in score_images(before, store, keys, *tiles)])["psnr"] if before else None
    result = SetResult(header.dataset, header.split, header.fingerprint, scores, step_0, unready)
    worst = [score.key for score in worst_first(scores)[:pictures]]
    for score, deblurred in score_images(model, store, worst, *tiles):
        save_pictures(out, result, store, score, deblurred)
    return result


def method_of(folder: Path, model: Deblurrer, inference: Inference) -> str:
    """The method a run was trained with; for a checkpoint, its name and what its prior is. And how it was run."""
    if (folder / CONFIG).is_file():
        method = str(yaml.safe_load((folder / CONFIG).read_text())["method"])
    else:
        prior = str(model.prior.config["name"]) if model.prior is not None else "none"
        method = f"{folder.stem} ({prior})"
    return f"{method}, {inference}" if str(inference) else method


@cli.command()
@click.argument("results", metavar="RESULTS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write table.md and report.html there.")
@click.option("--curves", multiple=True, type=click.Path(path_type=Path), help="Run folder whose curves to show.")
def table(results: tuple[Path, ...], out: Path | None, curves: tuple[Path, ...]) -> None:
    """Compare several RESULTS (folders written by `run`) as in the paper's Table 1."""
    runs = [read_results(path) for path in results]
    figures = {f"training of {run.name}": read_curves(run) for run in curves}
    text = "\n\n".join(f"{table.title}\n\n{as_markdown(table)}" for table in comparison_tables(runs))
    click.echo(text)
    if out is not None:
        folders = [path if path.is_dir() else path.parent for path in results]
        path = write_report(out, comparison_report(runs, folders, figures))
        (out / "table.md").write_text(text + "\n")
        click.echo(f"\nreport: {path}")


def main() -> None:
    run_command(cli)


if __name__ == "__main__":
    main()
